// A Railway project as code: a worker that sleeps, its alarm, and what a web service needs to wake it.
// Put your repository in, then: npm install railway && railway config plan --file deploy/railway.ts
import { defineRailway, github, preserve, project, redis, service } from "railway/iac";

const source = github("you/your-repository", { branch: "main" });
const build = { builder: "DOCKERFILE", dockerfilePath: "Dockerfile" } as const;

// From SIGTERM to SIGKILL. Railway's default is 0. The grace (30 s), giving the rest back and closing take at most 50 s.
const DRAINING_S = 60;
// The alarm looks every 5 minutes, Railway's shortest schedule; the worker is told so (RUNTIME_ALARM).
const EVERY_5_MINUTES = "*/5 * * * *";
// By the private network: it costs no egress, and a worker without a public domain is woken by no passing robot.
const WORKER_URL = "http://${{worker.RAILWAY_PRIVATE_DOMAIN}}:${{worker.PORT}}";

export default defineRailway(() => {
  const store = redis("Redis"); // With Upstash: leave it out, and REDIS_URL: preserve() in each service

  const worker = service("worker", {
    source,
    build,
    start: "python -m runtime serve",
    healthcheck: "/readyz", // so that a deploy that cannot reach its Redis does not replace one that can
    deploy: {
      sleepApplication: true, // takes effect with the next deploy
      drainingSeconds: DRAINING_S,
      restartPolicyType: "ON_FAILURE",
      restartPolicyMaxRetries: 10,
    },
    env: {
      REDIS_URL: store.env.REDIS_URL,
      PORT: "3002", // others can refer only to a port that is set here
      RUNTIME_SLEEP_AFTER: "60s",
      RUNTIME_ALARM: "5m",
      RAILWAY_DEPLOYMENT_DRAINING_SECONDS: String(DRAINING_S), // the same again, where the worker can see it
      RUNTIME_TOKEN: preserve(), // secrets are set in Railway, and stay there
      OPENAI_API_KEY: preserve(),
      JUDIT_API_KEY: preserve(),
    },
  });

  const alarm = service("alarm", {
    source,
    build,
    start: "python -m runtime wake --if-due",
    deploy: {
      cronSchedule: EVERY_5_MINUTES,
      restartPolicyType: "NEVER", // it looks again in 5 minutes
    },
    env: {
      REDIS_URL: store.env.REDIS_URL,
      RUNTIME_WAKE_URL: `${WORKER_URL}/wake`,
    },
  });

  // Yours: what matters here is its variables. A Python service enqueues by REDIS_URL and rings RUNTIME_WAKE_URL; any other
  // posts to WORKER_URL with RUNTIME_TOKEN. It has no provider's key.
  const web = service("web", {
    env: {
      REDIS_URL: store.env.REDIS_URL,
      RUNTIME_WAKE_URL: `${WORKER_URL}/wake`,
      WORKER_URL,
      RUNTIME_TOKEN: worker.env.RUNTIME_TOKEN,
    },
  });

  return project("your-project", { resources: [store, worker, alarm, web] });
});
