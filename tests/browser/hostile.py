"""Untrusted texts are shown as text: was one of them obeyed?"""

from playwright.sync_api import Page

HOSTILE = """<img src=x onerror="window.obeyed=1">"""
# A missing picture is noticed late. One that is asked for after theirs has failed after theirs.
ASKED_LATER = """async () => {
  const picture = new Image();
  picture.src = "x";
  await picture.decode().catch(() => {});
  await new Promise(done => setTimeout(done));
  return window.obeyed === 1;
}"""


def obeyed(page: Page) -> bool:
    """Whether `HOSTILE` in a text became a picture."""
    return page.evaluate(ASKED_LATER)
