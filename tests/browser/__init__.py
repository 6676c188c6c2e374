"""Tests of the widgets in a real JupyterLab and a real browser (`make browser-test`).

What an action asks for comes later: a message of the kernel, a decoded picture, a layout. It is awaited (`expect`,
`wait_until`, `wait_painted`) before it is compared; so is something that comes after it before it is denied.
"""
