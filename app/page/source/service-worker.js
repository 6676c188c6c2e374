// Pages are kept when this is installed, the model's files when they are first asked for; a new build replaces all.
// build.py puts the build's HASH and its small FILES above these lines.

const OURS = `kanjilab ${new URL(self.registration.scope).pathname} `; // other sites may be on the same host
const BUILD = OURS + HASH;

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(BUILD).then((cache) => cache.addAll(FILES)));
});

self.addEventListener("activate", (event) => {
  const old = (names) => names.filter((name) => name.startsWith(OURS) && name !== BUILD);
  const cleared = caches.keys().then((names) => Promise.all(old(names).map((name) => caches.delete(name))));
  event.waitUntil(cleared.then(() => self.clients.claim()));
});

async function answer(request) {
  const cache = await caches.open(BUILD);
  const kept = await cache.match(request, { ignoreSearch: true });
  if (kept) return kept;
  const response = await fetch(request);
  if (response.status === 200) cache.put(request, response.clone()).catch(() => {}); // no room: it stays online
  return response;
}

self.addEventListener("fetch", (event) => {
  const here = event.request.url.startsWith(self.registration.scope);
  if (event.request.method === "GET" && here) event.respondWith(answer(event.request));
});
