// Keeps the pages for reading and drawing without a network.
if ("serviceWorker" in navigator && isSecureContext) {
  navigator.serviceWorker.register(new URL("service-worker.js", import.meta.url)).catch(() => {});
}
