"""Lawsuits as JUDIT describes them, made up from a CNJ number: the same number always gives the same lawsuit.

Nobody's data: the documents of the parties have check digits that no real document can have.
"""

import hashlib
import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any

CNJ_FORM = re.compile(r"(\d{7})-(\d{2})\.(\d{4})\.(\d)\.(\d{2})\.(\d{4})")

_STATES = (
    *("AC", "AL", "AP", "AM", "BA", "CE", "DF", "ES", "GO", "MA", "MT", "MS", "MG", "PA"),
    *("PB", "PR", "PE", "PI", "RJ", "RN", "RS", "RO", "RR", "SC", "SE", "SP", "TO"),
)
_SEATS = {
    "4": ("DF", "RJ", "SP", "RS", "PE", "MG"),
    "5": (
        *("RJ", "SP", "MG", "RS", "BA", "PE", "CE", "PA", "PR", "DF", "AM", "SC"),
        *("PB", "RO", "SP", "MA", "ES", "GO", "AL", "SE", "RN", "PI", "MT", "MS"),
    ),
    "6": _STATES,
    "8": _STATES,
    "9": _STATES,
}
_JUSTICE = {
    "1": "SUPREMO TRIBUNAL FEDERAL",
    "2": "CONSELHO NACIONAL DE JUSTIÇA",
    "3": "SUPERIOR TRIBUNAL DE JUSTIÇA",
    "4": "JUSTIÇA FEDERAL",
    "5": "JUSTIÇA DO TRABALHO",
    "6": "JUSTIÇA ELEITORAL",
    "7": "JUSTIÇA MILITAR DA UNIÃO",
    "8": "JUSTIÇA ESTADUAL",
    "9": "JUSTIÇA MILITAR ESTADUAL",
}
_PEOPLE = [
    "ANA BEATRIZ MOREIRA",
    "CARLOS EDUARDO PRADO",
    "DANIELA FONTES",
    "EDSON TAVARES",
    "FERNANDA QUEIROZ",
    "GUSTAVO ALENCAR",
    "HELENA BRAGA",
    "IGOR SALES",
    "JOANA PIMENTEL",
    "LUCAS VILELA",
    "MARINA CASTRO",
    "PAULO HENRIQUE NERI",
    "RAFAELA DUARTE",
    "TIAGO LESSA",
]
_COMPANIES = [
    "AURORA SEGUROS S.A.",
    "BANCO HORIZONTE S.A.",
    "CASA NOVA INCORPORADORA LTDA",
    "DELTA TELECOM S.A.",
    "ESTRELA TRANSPORTES LTDA",
    "FAROL ENERGIA S.A.",
    "MUNICÍPIO DE SERRA AZUL",
    "REDE BOA VISTA DE SAÚDE LTDA",
]
_CLASSES = [
    ("7", "PROCEDIMENTO COMUM CÍVEL"),
    ("436", "PROCEDIMENTO DO JUIZADO ESPECIAL CÍVEL"),
    ("985", "AÇÃO TRABALHISTA - RITO ORDINÁRIO"),
    ("1116", "EXECUÇÃO FISCAL"),
    ("120", "MANDADO DE SEGURANÇA CÍVEL"),
]
_SUBJECTS = [
    ("7698", "PERDAS E DANOS"),
    ("10433", "INDENIZAÇÃO POR DANO MORAL"),
    ("9607", "CONTRATOS BANCÁRIOS"),
    ("2546", "VERBAS RESCISÓRIAS"),
    ("5952", "IPTU"),
]
_AREAS = ["DIREITO CIVIL", "DIREITO DO CONSUMIDOR", "DIREITO DO TRABALHO", "DIREITO TRIBUTÁRIO"]
_PHASES = ["INICIAL", "INSTRUTÓRIA", "DECISÓRIA", "RECURSAL", "EXECUÇÃO"]
_STEPS = [
    "Conclusos para despacho",
    "Proferido despacho de mero expediente",
    "Juntada de petição de manifestação da parte",
    "Expedição de carta de citação por via eletrônica",
    "Decorrido o prazo sem manifestação",
    "Publicada intimação no Diário da Justiça Eletrônico",
    "Juntada de contestação",
    "Audiência de conciliação designada",
    "Remetidos os autos ao contador",
    "Julgado procedente em parte o pedido",
    "Interposto recurso de apelação",
    "Juntada de comprovante de pagamento de custas",
]


def is_cnj(text: str) -> bool:
    """Form NNNNNNN-DD.AAAA.J.TR.OOOO, with the check digits of ISO 7064 mod 97-10."""
    found = CNJ_FORM.fullmatch(text)
    if not found:
        return False
    number, check, year, justice, tribunal, origin = found.groups()
    return int(number + year + justice + tribunal + origin + check) % 97 == 1


def make_cnj(number: int, year: int = 2024, justice: int = 8, tribunal: int = 26, origin: int = 100) -> str:
    """A CNJ number with the right check digits; by default of a court in São Paulo."""
    head, tail = f"{number:07d}", f"{year:04d}{justice}{tribunal:02d}{origin:04d}"
    check = 98 - int(head + tail + "00") % 97
    return f"{head}-{check:02d}.{year:04d}.{justice}.{tribunal:02d}.{origin:04d}"


def cnjs_of(search_key: str, count: int) -> list[str]:
    """The numbers of the lawsuits in which a person or a company takes part."""
    dice = _dice(search_key)
    return [
        make_cnj(dice.randrange(1000, 9_999_999), year=dice.randrange(2008, 2026), tribunal=dice.randrange(1, 28))
        for _ in range(count)
    ]


def instances_of(cnj: str) -> int:
    return _dice(cnj, "instances").choice((2, 2, 3))


def lawsuit(cnj: str, instance: int, *, part: int = 0, parts: int = 1, attachments: bool = False) -> dict[str, Any]:
    """One instance of a lawsuit with everything about it; its steps may come in several parts."""
    whole = cover(cnj, instance)
    dice = _dice(cnj, "steps", instance)
    begun = datetime.fromisoformat(whole["distribution_date"])
    steps = _steps(dice, cnj, instance, begun, whole["tags"])
    whole["last_step"] = steps[0]
    whole["phase"] = dice.choice(_PHASES)
    whole["status"] = dice.choice(("ATIVO", "ATIVO", "FINALIZADO"))
    whole["steps"] = steps[len(steps) * part // parts : len(steps) * (part + 1) // parts]
    whole["attachments"] = _attachments(dice, cnj, whole["steps"]) if attachments else []
    return whole


def cover(cnj: str, instance: int = 1) -> dict[str, Any]:
    """What a search by document brings: no steps, no attachments, neither phase nor status."""
    _, _, year, justice, tribunal, origin = _groups(cnj)
    dice = _dice(cnj, instance)
    crawl = {"crawl_id": _uuid(dice)}
    begun = datetime(int(year), dice.randrange(1, 4), dice.randrange(1, 28), dice.randrange(8, 19), tzinfo=UTC)
    begun += timedelta(days=90 * (instance - 1))
    active, passive = _party(dice, "Active", "AUTOR", crawl), _party(dice, "Passive", "RÉU", crawl)
    acronym = tribunal_acronym(justice, tribunal)
    class_code, class_name = dice.choice(_CLASSES)
    subject_code, subject_name = dice.choice(_SUBJECTS)
    court = f"{dice.randrange(1, 12)}ª " + ("VARA CÍVEL" if instance == 1 else "CÂMARA DE DIREITO PRIVADO")
    return {
        "code": cnj,
        "justice": justice,
        "tribunal": tribunal,
        "instance": instance,
        "distribution_date": iso(begun),
        "tribunal_acronym": acronym,
        "secrecy_level": 0,
        "tags": {**crawl, "dictionary_updated_at": iso(begun)},
        "subjects": [{"code": subject_code, "name": subject_name}],
        "classifications": [{"code": class_code, "name": class_name}],
        "courts": [{"code": origin, "name": court}],
        "parties": [active, passive],
        "related_lawsuits": [],
        "crawler": {"source_name": f"{acronym} - Lawsuit - {instance} instance", **crawl, "weight": 10},
        "metadata": {},
        "amount": round(dice.uniform(2_000, 250_000), 2),
        "area": dice.choice(_AREAS),
        "county": f"COMARCA {origin}",
        "city": f"COMARCA {origin}",
        "state": state_of(justice, tribunal),
        "justice_description": _JUSTICE.get(justice, "NÃO INFORMADO"),
        "judge": dice.choice(_PEOPLE),
        "free_justice": dice.random() < 0.3,
        "name": f"{active['name']} X {passive['name']}",
        "created_at": iso(begun),
        "updated_at": iso(begun + timedelta(days=1)),
    }


def state_of(justice: str, tribunal: str) -> str:
    """Where the tribunal sits; the superior ones in the capital."""
    seats, number = _SEATS.get(justice, ()), int(tribunal)
    return seats[number - 1] if 1 <= number <= len(seats) else "DF"


def tribunal_acronym(justice: str, tribunal: str) -> str:
    number = int(tribunal)
    state = state_of(justice, tribunal)
    match justice:
        case "1" | "2" | "3" | "7":
            return {"1": "STF", "2": "CNJ", "3": "STJ", "7": "STM"}[justice]
        case "4":
            return f"TRF{number}"
        case "5":
            return f"TRT{number}" if number else "TST"
        case "6":
            return f"TRE{state}" if number else "TSE"
        case "9":
            return f"TJM{state}"
        case _:
            return "TJDFT" if state == "DF" else f"TJ{state}"


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and a Z, as JUDIT writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _steps(dice: random.Random, cnj: str, instance: int, begun: datetime, tags: dict[str, Any]) -> list[dict[str, Any]]:
    """The newest first, as they are delivered."""
    count, at, steps = dice.randrange(18, 60), begun, []
    for _ in range(count):
        at += timedelta(days=dice.randrange(0, 3), minutes=dice.randrange(0, 600))
        steps.append(
            {
                "lawsuit_cnj": cnj,
                "lawsuit_instance": instance,
                "step_id": f"{dice.getrandbits(32):08x}",
                "step_date": iso(at),
                "content": dice.choice(_STEPS),
                "private": False,
                "tags": {"crawl_id": tags["crawl_id"]},
                "steps_count": count,
            }
        )
    return steps[::-1]


def _attachments(dice: random.Random, cnj: str, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "attachment_id": f"{dice.getrandbits(40):010x}",
            "attachment_date": step["step_date"],
            "attachment_name": f"{step['content']}.pdf",
            "extension": "pdf",
            "status": "done",
            "lawsuit_cnj": cnj,
            "step_id": step["step_id"],
            "tags": step["tags"],
        }
        for step in steps
        if dice.random() < 0.25
    ]


def _party(dice: random.Random, side: str, person_type: str, tags: dict[str, Any]) -> dict[str, Any]:
    person = side == "Active"
    document = _impossible(dice, 11 if person else 14)
    lawyer = {"name": dice.choice(_PEOPLE), "documents": [], "license": f"SP{dice.randrange(100_000, 480_000)}"}
    return {
        "name": dice.choice(_PEOPLE if person else _COMPANIES),
        "side": side,
        "person_type": person_type,
        "entity_type": "person" if person else "company",
        "main_document": document,
        "documents": [{"document": document, "document_type": "CPF" if person else "CNPJ"}],
        "lawyers": [lawyer],
        "tags": tags,
    }


def _impossible(dice: random.Random, digits: int) -> str:
    """Digits like those of a CPF or a CNPJ whose last check digit is wrong."""
    body = "".join(str(dice.randrange(10)) for _ in range(digits - 2))
    first = _check_digit(body)
    return f"{body}{first}{(_check_digit(f'{body}{first}') + 5) % 10}"


def _check_digit(body: str) -> int:
    # A CPF counts its weights upwards without end, a CNPJ (12 and 13 digits) starts again after 9.
    top = 9 if len(body) > 10 else len(body) + 1
    total = sum(int(digit) * (2 + place % (top - 1)) for place, digit in enumerate(reversed(body)))
    return 0 if total % 11 < 2 else 11 - total % 11


def _groups(cnj: str) -> tuple[str, ...]:
    found = CNJ_FORM.fullmatch(cnj)
    if found is None:
        raise ValueError(f"{cnj!r} is no CNJ number")
    return found.groups()


def _dice(*seed: object) -> random.Random:
    return random.Random(hashlib.sha256("|".join(map(str, seed)).encode()).digest())


def _uuid(dice: random.Random) -> str:
    digits = f"{dice.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
