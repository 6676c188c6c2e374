"""Settings of Voilà for the public playground (`make app`); app/serve.py points Voilà to them."""

from tornado.web import HTTPError

MOST_VISITORS = 8  # each has a kernel of up to 1 GB
IDLE_SECONDS = 600

# The browser blocks every request to another server.
CONTENT_POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "frame-ancestors": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
}


def refuse_a_crowd(request, notebook, cwd):
    """Refuse a visitor, before a kernel is started, when this machine is full."""
    if len(request.kernel_manager.list_kernel_ids()) >= MOST_VISITORS:
        raise HTTPError(503, reason="All places are taken. Please come back in a few minutes.")


c = get_config()  # noqa: F821  (given by Voilà)
c.Voila.open_browser = False
c.Voila.tornado_settings = {
    "headers": {
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in CONTENT_POLICY.items()),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
}
c.VoilaConfiguration.template = "kanjilab"
c.VoilaConfiguration.theme = "light"
c.VoilaConfiguration.allow_template_override = "NO"
c.VoilaConfiguration.allow_theme_override = "NO"
c.VoilaConfiguration.strip_sources = True
c.VoilaConfiguration.show_tracebacks = False
c.VoilaConfiguration.file_allowlist = []  # no file of this folder is served
c.VoilaConfiguration.prelaunch_hook = refuse_a_crowd
c.MappingKernelManager.cull_idle_timeout = IDLE_SECONDS
c.MappingKernelManager.cull_interval = 60
c.MappingKernelManager.cull_connected = True
