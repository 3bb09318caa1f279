"""Onboarding of a lawsuit: everything JUDIT knows of it, by its CNJ number.

Settings: `JUDIT_API_KEY`, `JUDIT_API_BASE_URL`.
"""

import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from runtime import Bucket, Checked, Context, Invalid, Permanent, Retry, Snooze, handler

# Any 60 s may have 180 requests, of all workers together.
requests = Bucket.window("judit", 180, per="60s", burst=9)
POLL = "3s"
GIVE_UP_AFTER = "30m"
PAGE_SIZE = 100
CLOCKS_DIFFER = timedelta(minutes=5)
CNJ = re.compile(r"(\d{7})-(\d{2})\.(\d{4})\.(\d)\.(\d{2})\.(\d{4})")


class Case(TypedDict):
    cnj: str
    requestId: str
    lawsuits: list[dict[str, Any]]


@handler(queue="judit", timeout="1m", retry=Retry(5, base="5s"))
async def onboard(ctx: Context, cnj: str) -> Case:
    """The case of this CNJ number, one lawsuit for each instance. One request is created, however often this is run."""
    check_cnj(cnj)
    judit = Judit(ctx)
    request_id = await ctx.once("create", Checked(judit.create, check=judit.find), cnj)
    if await judit.status(request_id) == "failed":
        raise Permanent(f"JUDIT could not complete the request {request_id}")
    responses = await _read_pages(ctx, judit, request_id)
    for response in responses:
        # JUDIT tells the errors of a search inside an answer of 200.
        if response["response_type"] == "application_error":
            data: dict[str, Any] = response.get("response_data") or {}
            raise Permanent(f"JUDIT: {data.get('code')}: {data.get('message')}")
    lawsuits = [response["response_data"] for response in responses if response["response_type"] == "lawsuit"]
    return {"cnj": cnj, "requestId": request_id, "lawsuits": lawsuits}


def check_cnj(cnj: str) -> None:
    """Raise `Invalid` unless `cnj` is NNNNNNN-DD.AAAA.J.TR.OOOO with its check digits (ISO 7064, mod 97-10)."""
    parts = CNJ.fullmatch(cnj)
    if parts is None:
        raise Invalid("not a CNJ number: it has the form NNNNNNN-DD.AAAA.J.TR.OOOO")
    number, digits, year, justice, court, origin = parts.groups()
    expected = 98 - int(f"{number}{year}{justice}{court}{origin}00") % 97
    if int(digits) != expected:
        raise Invalid(f"not a CNJ number: its check digits are {digits}, and should be {expected:02}")


async def _read_pages(ctx: Context, judit: "Judit", request_id: str) -> list[dict[str, Any]]:
    """All responses. They arrive by and by: a page that is full is kept, and the job snoozes for the rest."""
    responses: list[dict[str, Any]] = []
    page = 1
    while True:
        found = await ctx.once(f"page {page}", judit.final_page, request_id, page)
        responses += found["page_data"]
        if page >= found["all_pages_count"]:
            return responses
        page += 1


class Judit:
    """The calls of JUDIT's asynchronous API that an onboarding makes."""

    def __init__(self, ctx: Context) -> None:
        key = os.environ.get("JUDIT_API_KEY")
        if not key:
            raise Permanent(
                "JUDIT_API_KEY is not set for this worker; set it, then: runtime dlq replay --handler onboard --all"
            )
        self._http = ctx.http("judit")
        self._base = os.environ.get("JUDIT_API_BASE_URL", "https://requests.production.judit.io").rstrip("/")
        self._headers = {"api-key": key}
        self._since = ctx.enqueued_at - CLOCKS_DIFFER

    async def create(self, cnj: str) -> str:
        """Ask for the lawsuit; the request's id."""
        search = {"search_type": "lawsuit_cnj", "search_key": cnj, "response_type": "lawsuit"}
        async with self._http.post(
            f"{self._base}/requests", json={"search": search}, headers=self._headers
        ) as response:
            return str((await response.json())["request_id"])

    async def find(self, cnj: str) -> str | None:
        """The request that an earlier run may have made without living to note its id."""
        until = datetime.now(UTC) + CLOCKS_DIFFER
        days = {"created_at_gte": self._since.isoformat(), "created_at_lte": until.isoformat()}
        page = 1
        while True:
            found = await self._get("/requests", **days, page=page, page_size=PAGE_SIZE)
            for request in found["page_data"]:
                if request["search"]["search_key"] == cnj:
                    return str(request["request_id"])
            if page >= found["all_pages_count"]:
                return None
            page += 1

    async def status(self, request_id: str) -> str:
        return str((await self._get(f"/requests/{request_id}"))["status"])

    async def final_page(self, request_id: str, page: int) -> dict[str, Any]:
        """A page of responses that will not change any more. Raises `Snooze` while it may."""
        found = await self._get("/responses", request_id=request_id, page=page, page_size=PAGE_SIZE)
        if found["request_status"] != "completed" and page >= found["all_pages_count"]:
            raise Snooze(POLL, give_up_after=GIVE_UP_AFTER)
        return found

    async def _get(self, path: str, **query: str | int) -> dict[str, Any]:
        async with self._http.get(f"{self._base}{path}", params=query, headers=self._headers) as response:
            answer: dict[str, Any] = await response.json()
            return answer
