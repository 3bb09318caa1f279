// The worker and the producer of the benchmark for BullMQ, as `workers.py` and `clients.py` are for Python.
// usage: node bullmq.cjs URL worker CONCURRENCY | client ACTION COUNT NAME [ARG]
const fs = require('fs');
const { Queue, QueueEvents, Worker } = require('bullmq');

const [url, role, ...rest] = process.argv.slice(2);
const { hostname: host, port } = new URL(url);
const connection = { host, port: Number(port), maxRetriesPerRequest: null };
const now = () => Number(process.hrtime.bigint()) / 1e9; // the clock of Python's time.monotonic()
const sleep = (s) => new Promise((resolve) => setTimeout(resolve, 1000 * s));
const BULK = 1000;

function work(concurrency) {
  const marks = Number(process.env.BENCH_MARKS);
  const last = Number(process.env.BENCH_JOBS);
  let begun = 0;
  const tell = () => fs.writeSync(marks, `${now()}\n`);
  const run = async (job) => {
    begun += 1;
    if (job.name === 'marked' || begun === 1 || begun === last) tell();
    if (job.name === 'nap') await sleep(job.data.arg);
  };
  const worker = new Worker('bench', run, { connection, concurrency });
  worker.on('error', (error) => console.error(error.message));
  process.on('SIGTERM', () => process.exit(0));
}

async function act(action, count, name, text) {
  const queue = new Queue('bench', { connection });
  await queue.waitUntilReady();
  const data = { arg: Number(text) };
  const figures = [];
  if (action === 'one' || action === 'bulk') {
    await queue.add(name, data); // by now it is connected
    const began = now();
    if (action === 'one') {
      for (let n = 1; n < count; n += 1) await queue.add(name, data);
    }
    for (let at = 1; action === 'bulk' && at < count; at += BULK) {
      await queue.addBulk(Array.from({ length: Math.min(BULK, count - at) }, () => ({ name, data })));
    }
    figures.push((count - 1) / (now() - began));
  } else {
    const events = new QueueEvents('bench', { connection });
    await events.waitUntilReady();
    for (let n = 0; n < count; n += 1) {
      const at = now();
      const job = await queue.add(name, data);
      if (action === 'results') await job.waitUntilFinished(events);
      figures.push(action === 'results' ? 1000 * (now() - at) : at);
      await sleep(0.15 + 0.1 * Math.random());
    }
    await events.close();
  }
  await queue.close();
  console.log(JSON.stringify(figures));
}

if (role === 'worker') work(Number(rest[0]));
else act(rest[0], Number(rest[1]), rest[2], rest[3]).then(() => process.exit(0));
