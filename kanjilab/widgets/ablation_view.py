"""The browser's side of the ablation panel."""

import anywidget
import traitlets

from kanjilab.widgets.common import FOLDER


class AblationView(anywidget.AnyWidget):
    """The browser's side; see the top of ablation.js for what each attribute holds."""

    _esm = FOLDER / "ablation.js"
    _css = FOLDER / "ablation.css"
    catalogue = traitlets.Dict().tag(sync=True)
    images = traitlets.List(traitlets.Bytes()).tag(sync=True)
    menu = traitlets.List().tag(sync=True)
    chosen = traitlets.Unicode().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    work = traitlets.Dict().tag(sync=True)
    alone = traitlets.Bool(False).tag(sync=True)
