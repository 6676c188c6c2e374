// Keeps the pages, and the model once it was loaded, for reading and drawing without a network.

const LONGEST_MS = 5000;

async function keep() {
  if (!("serviceWorker" in navigator) || !isSecureContext) return;
  await navigator.serviceWorker.register(new URL("service-worker.js", import.meta.url));
  await navigator.serviceWorker.ready;
}

/** Done when what is loaded from now on is kept, or when it is clear that nothing will be. */
export const kept = Promise.race([keep(), new Promise((done) => setTimeout(done, LONGEST_MS))]).catch(() => {});
