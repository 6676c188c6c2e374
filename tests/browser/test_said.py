"""What a panel says, as a screen reader hears it."""

from playwright.sync_api import expect

from kanjilab.widgets.said import Said

from .alone import show_alone
from .hostile import HOSTILE, obeyed


def test_the_live_region_stays_and_its_text_changes(page):
    show_alone(page, Said._esm, '{ value: "", soft: false }')
    region = page.get_by_role("status").element_handle()
    page.evaluate("text => model.tell({ value: text })", HOSTILE)
    expect(page.get_by_role("status")).to_have_text(HOSTILE)
    assert page.evaluate("region => region.isConnected", region), "what comes in anew is not announced"
    assert not obeyed(page)
