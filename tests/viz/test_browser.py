"""The explorer in headless Chromium, opened from disk; skipped if the browser is missing."""

import re

import numpy as np
import pytest
from PIL import Image

from common.inference.attention import AttentionMaps
from tests.viz.example import example
from viz.explorer import region_positions, word_positions, write_page
from viz.screenshots import find_chromium, open_chromium, take_screenshots

pytest.importorskip("playwright", reason="needs Playwright: pip install -r requirements-dev.txt")
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.integration,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium"),
]

DESKTOP = {"width": 1280, "height": 900}
GRAY = Image.new("RGB", (640, 480), "gray")
PHONE = {"width": 360, "height": 780}


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def record() -> AttentionMaps:
    """3 layers, 4 heads, 5 words at 1..5, 3 regions at 8..10; plus [CLS], [SEP], image and [END]."""
    return example(3, 4, words=5, regions=3)


@pytest.fixture
def open_page(browser, record, tmp_path):
    """Opens the page of a record; fails the test on console output, errors and network requests."""
    events: list[str] = []
    contexts = []

    def open_page(record=record, image=GRAY, viewport=DESKTOP, **settings) -> Page:
        write_page(record, image, tmp_path / "page.html")
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        page = context.new_page()
        address = (tmp_path / "page.html").as_uri()
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on(
            "request", lambda request: events.append(request.url) if is_foreign(request.url, address) else 0
        )
        page.goto(address)
        wait_until_drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert events == []


def is_foreign(url: str, address: str) -> bool:
    return url != address and not url.startswith("data:")


def wait_until_drawn(page: Page) -> None:
    """Waits until thumbnails and the current position are drawn."""
    page.wait_for_selector("#grid[data-milliseconds]")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def strengths_of(page: Page, kind: str) -> dict[int, float]:
    """Strength of boxes or chips by position."""
    nodes = page.locator(f".{kind}").evaluate_all(
        "nodes => nodes.map(node => [Number(node.dataset.position), "
        "Number(node.style.getPropertyValue('--strength'))])"
    )
    return {int(position): strength for position, strength in nodes}


def table(page: Page) -> list[tuple[str, float]]:
    """Names and weights in percent, strongest first."""
    rows = page.locator("#table-rows tr:not([aria-hidden])")
    texts = rows.evaluate_all("rows => rows.map(row => [...row.children].map(cell => cell.textContent))")
    return [(position, float(weight.removesuffix(" %").removeprefix("< "))) for position, weight in texts]


def ink(page: Page, canvas: str) -> float:
    """The sum of opacities of a canvas."""
    return page.locator(canvas).evaluate(
        "canvas => { const {width, height} = canvas;"
        " const copy = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true});"
        " copy.drawImage(canvas, 0, 0); const {data} = copy.getImageData(0, 0, width, height);"
        " let sum = 0; for (let at = 3; at < data.length; at += 4) sum += data[at]; return sum; }"
    )


def labels(page: Page, side: str) -> list[str]:
    return page.locator(f"#{side} .label").all_text_contents()


def top(weights: np.ndarray) -> float:
    """The largest weight on the words at 1..5 and the regions at 8..10."""
    return max(weights[1:6].max(), weights[8:11].max())


def test_page_shows_all_tokens_regions_and_heads(open_page, record):
    page = open_page()
    assert page.title() == "Attention example"
    assert page.locator("#words .chip").all_text_contents() == list(record.sequence.tokens)
    assert page.locator("#regions .chip").all_text_contents() == [*record.sequence.labels, "[END]"]
    assert sorted(page.locator(".box").all_text_contents()) == ["1", "2", "3"]
    assert page.locator("#grid [role=row]").count() == 1 + 3
    assert page.locator("#grid [role=gridcell]").count() == 3 * (4 + 1)
    for cell in ("Layer 0, Head 0", "Layer 2, Head 3", "Layer 1, mean of its heads"):
        assert ink(page, f"[aria-label='{cell}'] canvas") > 0
    assert page.locator("#image img").evaluate("image => image.naturalWidth") == 640
    expect(page.locator("#detail-title")).to_have_text("Mean of all heads")
    frame, box = (page.locator(name).bounding_box() for name in ("#image", ".box[data-position='9']"))
    x1, y1, x2, y2 = record.sequence.boxes[2]
    pixels = np.array([box["x"] - frame["x"], box["y"] - frame["y"], box["width"], box["height"]])
    pixels *= 640 / frame["width"]
    np.testing.assert_allclose(pixels, [x1, y1, x2 - x1 + 1, y2 - y1 + 1], atol=0.5)


def test_weights_are_decoded_and_averaged(open_page, record):
    page = open_page()
    for call, expected in (
        ("1, 2", record.maps[1, 2]),
        ("1, null", record.maps[1].mean(0)),
        ("null, null", record.maps.mean((0, 1))),
    ):
        found = page.evaluate(f"Array.from(weightsOf({call}))")
        np.testing.assert_allclose(found, expected.ravel(), atol=0.004)


def all_positions(sequence) -> range:
    return range(len(sequence.names))


@pytest.mark.parametrize(
    ("title", "rows", "columns", "rescaled"),
    [
        ("Text → RoIs", word_positions, region_positions, True),
        ("RoIs → Text", region_positions, word_positions, True),
        ("Text → Text", word_positions, word_positions, True),
        ("RoIs → RoIs", region_positions, region_positions, True),
        ("All", all_positions, all_positions, False),
    ],
)
def test_filter_shows_block_rescaled_per_layer(open_page, record, title, rows, columns, rescaled):
    page, sequence = open_page(), record.sequence
    page.get_by_text(title, exact=True).first.click()
    wait_until_drawn(page)
    assert labels(page, "left") == [sequence.names[i] for i in rows(sequence)]
    assert labels(page, "right") == [sequence.names[i] for i in columns(sequence)]
    block = record.maps[:, :, rows(sequence)][..., columns(sequence)]
    checkbox = page.get_by_label("Rescale each layer")
    assert checkbox.is_checked() == rescaled
    if rescaled:
        low, high = block[2].min(), block[2].max()  # over the heads of a layer
        expected = (block[2, 1] - low) / (high - low)
        np.testing.assert_allclose(page.evaluate("Array.from(strengths(2, 1))"), expected.ravel(), atol=0.02)
        checkbox.uncheck()
    np.testing.assert_allclose(page.evaluate("Array.from(strengths(2, 1))"), block[2, 1].ravel(), atol=0.004)


def test_detail_shows_selected_head(open_page, record):
    page = open_page()
    mean = ink(page, "#lines")
    page.get_by_role("gridcell", name="Layer 2, Head 1", exact=True).click()
    wait_until_drawn(page)
    expect(page.locator("#detail-title")).to_have_text("Layer 2, Head 1")
    assert ink(page, "#lines") != mean
    assert (page.locator("#layer").input_value(), page.locator("#head").input_value()) == ("2", "1")
    chosen = page.locator("[aria-selected=true]")
    assert chosen.get_attribute("aria-label") == "Layer 2, Head 1"
    page.locator("#head").select_option("")
    expect(page.locator("#detail-title")).to_have_text("Layer 2, mean of its heads")
    page.locator("#layer").select_option("")
    expect(page.locator("#detail-title")).to_have_text("Mean of all heads")
    # The first row is the strongest link of the block.
    weights = record.maps.mean((0, 1))[1:6, 8:11]
    word, region = np.unravel_index(weights.argmax(), weights.shape)
    wait_until_drawn(page)
    assert table(page)[0] == (f"word{word} → {region + 1} thing", pytest.approx(100 * weights.max(), abs=0.6))


def test_hovered_word_highlights_regions(open_page, record):
    page = open_page()
    page.get_by_role("gridcell", name="Layer 1, Head 3", exact=True).click()
    page.locator("#words .chip").nth(2).hover()
    wait_until_drawn(page)
    weights = record.maps[1, 3, 2]
    boxes = strengths_of(page, "box")
    for position in (8, 9, 10):
        assert boxes[position] == pytest.approx(weights[position] / top(weights), abs=0.03)
    chips = strengths_of(page, "chip")
    for position in range(1, 6):
        assert chips[position] == pytest.approx(weights[position] / top(weights), abs=0.03)
    best = int(weights.argmax())
    assert table(page)[0] == (record.sequence.names[best], pytest.approx(100 * weights[best], abs=0.6))
    assert [weight for _, weight in table(page)] == pytest.approx(100 * np.sort(weights)[::-1][:6], abs=0.6)
    # Only the lines of this word remain.
    only = ink(page, "#lines")
    page.mouse.move(0, 0)
    wait_until_drawn(page)
    assert set(strengths_of(page, "box").values()) == {0}
    assert 0 < only < ink(page, "#lines")


def test_hovered_region_highlights_words(open_page, record):
    page = open_page()
    page.locator(".box[data-position='9']").hover(position={"x": 1, "y": 1})
    wait_until_drawn(page)
    hovered = int(page.locator(".box.current").get_attribute("data-position"))
    row, column = record.maps.mean((0, 1))[hovered], record.maps.mean((0, 1))[:, hovered]
    chips = strengths_of(page, "chip")
    assert [chips[position] for position in range(1, 6)] == pytest.approx(row[1:6] / top(row), abs=0.03)
    page.get_by_text("is attended by").click()
    page.locator(f"#regions [data-position='{hovered}']").hover()
    wait_until_drawn(page)
    chips = strengths_of(page, "chip")
    assert [chips[position] for position in range(1, 6)] == pytest.approx(column[1:6] / top(column), abs=0.03)
    assert "is attended by" in page.locator("#table-title").text_content()


def test_lines_follow_direction(open_page):
    page = open_page()
    page.locator("#words .chip").nth(2).click()
    page.mouse.move(0, 0)
    wait_until_drawn(page)
    assert ink(page, "#lines") > 0
    page.get_by_text("is attended by").click()
    page.mouse.move(0, 0)
    wait_until_drawn(page)
    assert page.evaluate(
        "Array.from(currentLinks()).every(strength => strength === 0)"
    )  # no region attends to it in this block
    page.get_by_text("Text → Text", exact=True).click()
    page.mouse.move(0, 0)
    wait_until_drawn(page)
    seen = page.evaluate("Array.from(currentLinks()).flatMap((strength, at) => strength ? [at % 5] : [])")
    assert set(seen) == {1}  # column of the second word


def test_shade_leaves_out_current_box(open_page, record):
    boxes = (record.sequence.boxes[0], (0.0, 0.0, 39.0, 29.0), *record.sequence.boxes[2:])
    sequence = record.sequence.model_copy(update={"boxes": boxes, "size": (40, 30)})
    page = open_page(AttentionMaps(sequence, record.maps), image=Image.new("RGB", (40, 30)))
    page.locator("#regions [data-position='8']").hover()
    wait_until_drawn(page)
    assert page.locator(".box.current").count() == 1
    assert ink(page, "#shade") == 0


def test_old_browser_shows_message(browser, record, tmp_path):
    write_page(record, GRAY, tmp_path / "page.html")
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "page.html").as_uri())
    expect(page.locator("#facts")).to_contain_text("This browser is too old for this page")
    expect(page.locator("main")).to_be_hidden()
    page.close()


def test_detail_labels_imply_direction(open_page, record):
    page, mean, names = open_page(), record.maps.mean((0, 1)), record.sequence.names
    for side, weights in (("left", mean[2]), ("right", mean[:, 9])):
        page.locator(f"#{side} .label").nth(1).hover()
        wait_until_drawn(page)
        assert table(page)[0][0] == names[weights.argmax()]


def test_threshold_hides_weak_links(open_page, record):
    page = open_page()
    page.locator("#words .chip").nth(1).click()
    page.mouse.move(0, 0)
    before = ink(page, "[aria-label='Layer 0, mean of its heads'] canvas"), ink(page, "#lines")
    page.locator("#threshold").fill("0.9")
    wait_until_drawn(page)
    expect(page.locator("#threshold-value")).to_have_text("0.90")
    after = ink(page, "[aria-label='Layer 0, mean of its heads'] canvas"), ink(page, "#lines")
    assert 0 < after[0] < before[0]
    assert after[1] < before[1]
    assert all(strength == 0 or strength >= 0.9 for strength in strengths_of(page, "box").values())


def test_tab_order_has_one_stop_per_group(open_page):
    page = open_page()
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "() => { const node = document.activeElement; return node !== document.body && "
            "[node.closest('[id]').id, getComputedStyle(node.matches('.choices input') ? node.nextSibling : node)"
            ".outlineStyle]; }"
        )
        if not found:
            break
        stops.append(found)
    # From top to bottom; the head select is disabled without a layer.
    assert [group for group, _ in stops] == [
        *("layer", "direction", "words", "regions"),
        *("filter", "threshold", "rescale", "grid", "left", "right"),
    ]
    assert {style for _, style in stops} <= {"solid", "auto"}  # the focus is always visible


def test_grid_arrow_keys(open_page):
    page = open_page()
    page.get_by_role("gridcell", name="Layer 0, mean").focus()
    for key, expected in (
        ("ArrowRight", "Layer 0, Head 0"),
        ("ArrowDown", "Layer 1, Head 0"),
        ("End", "Layer 1, Head 3"),
        ("ArrowRight", "Layer 1, Head 3"),  # no wrapping between rows
        ("ArrowUp", "Layer 0, Head 3"),
        ("ArrowUp", "Layer 0, Head 3"),
        ("Home", "Layer 0, mean of its heads"),
        ("ArrowRight", "Layer 0, Head 0"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == expected
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_have_text("Layer 0, Head 0")
    page.keyboard.press("Escape")
    expect(page.locator("#detail-title")).to_have_text("Mean of all heads")


def test_word_arrow_keys(open_page, record):
    page = open_page()
    page.locator("#words .chip").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    wait_until_drawn(page)
    weights = record.maps.mean((0, 1))[2]
    assert page.locator(".chip.current").text_content() == "word1"
    assert strengths_of(page, "box")[9] == pytest.approx(weights[9] / top(weights), abs=0.03)
    assert (
        page.locator("#announcement")
        .text_content()
        .startswith(f"word1 attends to {record.sequence.names[weights.argmax()]}")
    )
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.locator("#threshold").focus()
    wait_until_drawn(page)
    assert page.locator(".chip[aria-pressed=true]").all_text_contents() == ["word1"]
    page.keyboard.press("Escape")
    wait_until_drawn(page)
    assert page.locator(".chip[aria-pressed=true]").count() == 0
    assert set(strengths_of(page, "box").values()) == {0}


@pytest.mark.parametrize(("words", "regions", "heads"), [(5, 3, 4), (110, 36, 12)])
def test_phone_has_no_horizontal_scrolling(open_page, words, regions, heads):
    page = open_page(example(8, heads, words, regions), viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#words .chip").nth(2).tap()
    wait_until_drawn(page)
    assert page.locator(".chip.current").text_content() == "word1"
    page.get_by_role("gridcell", name="Layer 0, Head 2", exact=True).tap()
    wait_until_drawn(page)
    expect(page.locator("#detail-title")).to_be_in_viewport()
    for title in ("RoIs → RoIs", "All"):
        page.get_by_text(title, exact=True).first.tap()
        wait_until_drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_long_names_do_not_widen_page(open_page, record):
    long = "supercalifragilistic" * 10
    tokens, labels = (
        (*record.sequence.tokens[:-2], long, "[SEP]"),
        (*record.sequence.labels[:-1], f"3 {long}"),
    )
    sequence = record.sequence.model_copy(update={"tokens": tokens, "labels": labels, "image_id": long})
    page = open_page(AttentionMaps(sequence, record.maps), viewport=PHONE)
    page.locator("#words .chip").nth(5).click()
    wait_until_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_colors_and_motion_follow_system_settings(open_page):
    def style(page: Page, name: str) -> str:
        return page.evaluate(f"getComputedStyle(document.querySelector('.chip').closest('section')).{name}")

    def transition(page: Page) -> str:
        return page.locator(".chip").first.evaluate("chip => getComputedStyle(chip).transitionDuration")

    light = open_page(color_scheme="light", reduced_motion="no-preference")
    dark = open_page(color_scheme="dark", reduced_motion="reduce")
    brightness = [
        sum(map(int, re.findall(r"\d+", style(page, "backgroundColor"))[:3])) for page in (light, dark)
    ]
    assert brightness[0] > 600
    assert brightness[1] < 200
    assert "0.12s" in transition(light)
    assert transition(dark) == "0s"


def test_markup_in_names_is_shown_as_text(open_page, record):
    token, label = '</script><img src=x onerror="alert(1)">', '1 <b>猫</b> & "é" \' $data'
    tokens, labels = (
        ("[CLS]", token, *record.sequence.tokens[2:]),
        ("image", label, *record.sequence.labels[2:]),
    )
    sequence = record.sequence.model_copy(update={"tokens": tokens, "labels": labels, "image_id": token})
    page = open_page(AttentionMaps(sequence, record.maps))
    assert page.title() == f"Attention {token}"
    assert page.locator("#words .chip").nth(1).text_content() == token
    assert page.locator("#regions .chip").nth(1).text_content() == label
    assert page.locator("img").count() == 1  # the image


def test_page_without_regions_or_image(open_page, record):
    sequence = record.sequence.model_copy(update={"boxes": (), "labels": (), "size": (0, 0)})
    maps = record.maps[:, :, [*range(7), 11]][..., [*range(7), 11]]

    page = open_page(AttentionMaps(sequence, maps), image=None)
    assert page.locator("#image").is_hidden()
    assert page.get_by_role("radio", name="Text → Text").is_checked()
    assert page.get_by_role("radio", name="Text → RoIs").is_disabled()
    page.locator("#words .chip").nth(1).hover()
    wait_until_drawn(page)
    assert max(strengths_of(page, "chip").values()) == 1


def test_thumbnails_are_drawn_over_many_frames(open_page):
    # 12 layers of 12 heads over 100 sequence: the page answers meanwhile.
    page = open_page(example(12, 12, words=60, regions=36))
    frames = page.evaluate(
        "() => new Promise(done => { document.querySelector('[value=all]').click(); let frames = 0;"
        " const tick = () => { frames++; if (document.getElementById('grid').dataset.milliseconds) done(frames);"
        " else requestAnimationFrame(tick); }; requestAnimationFrame(tick); })"
    )
    assert frames > 10


def test_screenshots_have_expected_size(browser, tmp_path):
    take_screenshots(browser, example(), GRAY, tmp_path)
    for name, size in (("explorer-desktop", (1280, 900)), ("explorer-phone", (720, 1560))):
        assert (tmp_path / f"{name}.png").stat().st_size < 150_000
        with Image.open(tmp_path / f"{name}.png") as shot:
            assert shot.size == size
            assert len(shot.getcolors()) > 100
