"""Settings of Voilà for the public playground (`make app`); app/serve.py points Voilà to them."""

from jupyter_server.base.handlers import JupyterHandler
from tornado.web import StaticFileHandler
from visitors import Visitors, check_host, frame_ancestors, set_headers

IDLE_SECONDS = 600

# The browser blocks every request to another server.
CONTENT_POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "frame-ancestors": frame_ancestors(),
    "base-uri": "'none'",
    "form-action": "'none'",
}


JupyterHandler.check_host = check_host  # Voilà itself answers to any name
StaticFileHandler.set_default_headers = set_headers
c = get_config()  # noqa: F821  (given by Voilà)
c.Voila.open_browser = False
c.Voila.tornado_settings = {
    "headers": {
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in CONTENT_POLICY.items()),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    },
    # There is no login that another site could abuse, and Voilà sets no cookie by which a closing page could end its
    # kernel; who does not know a kernel's random name cannot end it.
    "disable_check_xsrf": True,
}
c.VoilaConfiguration.template = "kanjilab"
c.VoilaConfiguration.theme = "light"
c.VoilaConfiguration.allow_template_override = "NO"
c.VoilaConfiguration.allow_theme_override = "NO"
c.VoilaConfiguration.strip_sources = True
c.VoilaConfiguration.show_tracebacks = False
c.VoilaConfiguration.file_allowlist = []  # no file of this folder is served
c.VoilaConfiguration.multi_kernel_manager_class = Visitors
c.MappingKernelManager.cull_idle_timeout = IDLE_SECONDS
c.MappingKernelManager.cull_interval = 60
c.MappingKernelManager.cull_connected = True
