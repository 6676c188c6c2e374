"""A widget of anywidget's on a page of its own, without JupyterLab and a kernel."""

from playwright.sync_api import Locator, Page

PAGE = """<!doctype html><style>body {{ margin: 0 }} {style}</style><div id="panel"></div>
<script type="module">{script}
window.values = {values};
const watchers = [];
window.model = {{
  get: name => values[name], send() {{}}, save_changes() {{}}, off() {{}},
  set: (name, value) => Object.assign(values, typeof name === "object" ? name : {{ [name]: value }}),
  on: (name, act) => watchers.push([name, act]),
  tell: changes => {{
    Object.assign(values, changes);
    for (const [name, act] of watchers) if (name === "change" || name.replace("change:", "") in changes) act();
  }},
}};
render({{ model, el: document.getElementById("panel") }});
</script>"""


def show_alone(page: Page, script: str, values: str, style: str = "") -> Locator:
    """Put a widget onto an empty page; `values` and `model.tell` are there for scripts of the test.

    Args:
        page: empty.
        script: a module with a function `render`.
        values: of its traits, in JavaScript.
        style: CSS.
    Returns:
        the element that it is shown in.
    """
    page.set_content(PAGE.format(style=style, script=script, values=values))
    return page.locator("#panel")
