"""The explorer in headless Chromium, opened from disk; skipped where the browser is missing."""

import re

import numpy as np
import pytest
from PIL import Image

from common.inference.attention import AttentionMaps
from tests.viz.example import example, toy_example
from viz.explorer import masked_region_index, masked_token_index, write_page
from viz.screenshots import find_chromium, open_chromium, strongest_link, take_screenshots

pytest.importorskip("playwright", reason="needs Playwright: pip install -r requirements-dev.txt")
from playwright.sync_api import Page, expect

pytestmark = [
    pytest.mark.browser,
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
    """3 layers, 4 heads, 5 words at 1..5, 3 regions at 8..10; [CLS], [SEP], image and [END] around them."""
    return example(3, 4, words=5, regions=3)


@pytest.fixture
def open_page(browser, record, tmp_path):
    """Opens the page of a record; no error, message or request may have come when the test ends."""
    found: list[str] = []
    contexts = []

    def open_page(record=record, picture=GRAY, viewport=DESKTOP, **settings) -> Page:
        write_page(record, picture, tmp_path / "page.html")
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        page = context.new_page()
        address = (tmp_path / "page.html").as_uri()
        page.on("console", lambda message: found.append(message.text))
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on(
            "request", lambda request: found.append(request.url) if is_foreign(request.url, address) else 0
        )
        page.goto(address)
        drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert found == []


def is_foreign(url: str, address: str) -> bool:
    return url != address and not url.startswith("data:")


def drawn(page: Page) -> None:
    """Waits until all thumbnails and what the current place asks for are drawn."""
    page.wait_for_selector("#grid[data-milliseconds]")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def strengths_of(page: Page, kind: str) -> dict[int, float]:
    """Place -> strength, of the boxes or chips."""
    nodes = page.locator(f".{kind}").evaluate_all(
        "nodes => nodes.map(node => [Number(node.dataset.place), "
        "Number(node.style.getPropertyValue('--strength'))])"
    )
    return {int(place): strength for place, strength in nodes}


def table(page: Page) -> list[tuple[str, float]]:
    """Names and weights in percent, the strongest first."""
    rows = page.locator("#answers tr:not([aria-hidden])")
    texts = rows.evaluate_all("rows => rows.map(row => [...row.children].map(cell => cell.textContent))")
    return [(place, float(weight.removesuffix(" %").removeprefix("< "))) for place, weight in texts]


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


def top(look: np.ndarray) -> float:
    """The largest weight on one of the words at 1..5 or the regions at 8..10."""
    return max(look[1:6].max(), look[8:11].max())


def test_the_page_shows_all_of_the_record(open_page, record):
    page = open_page()
    assert page.title() == "Attention example"
    assert page.locator("#words .chip").all_text_contents() == list(record.places.tokens)
    assert page.locator("#regions .chip").all_text_contents() == [*record.places.labels, "[END]"]
    assert sorted(page.locator(".box").all_text_contents()) == ["1", "2", "3"]
    assert page.locator("#grid [role=row]").count() == 1 + 3
    assert page.locator("#grid [role=gridcell]").count() == 3 * (4 + 1)
    for cell in ("Layer 0, Head 0", "Layer 2, Head 3", "Layer 1, mean of its heads"):
        assert ink(page, f"[aria-label='{cell}'] canvas") > 0
    assert page.locator("#picture img").evaluate("image => image.naturalWidth") == 640
    expect(page.locator("#detail-title")).to_have_text("Mean of all heads")


def test_boxes_lie_where_they_are(open_page, record):
    page = open_page()
    frame = page.locator("#picture").bounding_box()
    box = page.locator(".box[data-place='9']").bounding_box()
    scale = frame["width"] / 640
    x1, y1, x2, y2 = record.places.boxes[2]
    expected = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
    found = [box["x"] - frame["x"], box["y"] - frame["y"], box["width"], box["height"]]
    np.testing.assert_allclose(np.array(found) / scale, expected, atol=0.5)


def test_weights_and_their_means(open_page, record):
    page = open_page()
    for call, expected in (
        ("1, 2", record.maps[1, 2]),
        ("1, null", record.maps[1].mean(0)),
        ("null, null", record.maps.mean((0, 1))),
    ):
        found = page.evaluate(f"Array.from(weightsOf({call}))")
        np.testing.assert_allclose(found, expected.ravel(), atol=0.004)


@pytest.mark.parametrize(
    ("title", "rows", "columns"),
    [
        ("Text → RoIs", masked_token_index, masked_region_index),
        ("RoIs → Text", masked_region_index, masked_token_index),
        ("Text → Text", masked_token_index, masked_token_index),
        ("RoIs → RoIs", masked_region_index, masked_region_index),
    ],
)
def test_filters_show_their_block_rescaled_per_layer(open_page, record, title, rows, columns):
    page = open_page()
    page.get_by_text(title, exact=True).first.click()
    drawn(page)
    block = record.maps[:, :, rows(record.places)][..., columns(record.places)]
    low, high = block[2].min(), block[2].max()  # over the heads of a layer
    np.testing.assert_allclose(
        page.evaluate("Array.from(strengths(2, 1))"), ((block[2, 1] - low) / (high - low)).ravel(), atol=0.02
    )
    names = record.places.names
    assert labels(page, "left") == [names[place] for place in rows(record.places)]
    assert labels(page, "right") == [names[place] for place in columns(record.places)]
    page.get_by_label("Rescale each layer").uncheck()
    np.testing.assert_allclose(page.evaluate("Array.from(strengths(2, 1))"), block[2, 1].ravel(), atol=0.004)


def test_all_is_not_rescaled(open_page, record):
    page = open_page()
    page.get_by_text("All", exact=True).click()
    assert not page.get_by_label("Rescale each layer").is_checked()
    assert labels(page, "left") == labels(page, "right") == list(record.places.names)
    found = page.evaluate("Array.from(strengths(0, 3))")
    np.testing.assert_allclose(found, record.maps[0, 3].ravel(), atol=0.004)


def test_a_head_in_detail(open_page, record):
    page = open_page()
    mean = ink(page, "#lines")
    page.get_by_role("gridcell", name="Layer 2, Head 1", exact=True).click()
    drawn(page)
    expect(page.locator("#detail-title")).to_have_text("Layer 2, Head 1")
    assert ink(page, "#lines") != mean
    assert (page.locator("#layer").input_value(), page.locator("#head").input_value()) == ("2", "1")
    chosen = page.locator("[aria-selected=true]")
    assert chosen.get_attribute("aria-label") == "Layer 2, Head 1"
    page.locator("#head").select_option("")
    expect(page.locator("#detail-title")).to_have_text("Layer 2, mean of its heads")
    page.locator("#layer").select_option("")
    expect(page.locator("#detail-title")).to_have_text("Mean of all heads")
    # The strongest link of the block heads the table.
    look = record.maps.mean((0, 1))[1:6, 8:11]
    word, region = np.unravel_index(look.argmax(), look.shape)
    drawn(page)
    assert table(page)[0] == (f"word{word} → {region + 1} thing", pytest.approx(100 * look.max(), abs=0.6))


def test_hovering_a_word_lights_its_regions(open_page, record):
    page = open_page()
    page.get_by_role("gridcell", name="Layer 1, Head 3", exact=True).click()
    page.locator("#words .chip").nth(2).hover()
    drawn(page)
    look = record.maps[1, 3, 2]
    boxes = strengths_of(page, "box")
    for place in (8, 9, 10):
        assert boxes[place] == pytest.approx(look[place] / top(look), abs=0.03)
    chips = strengths_of(page, "chip")
    for place in range(1, 6):
        assert chips[place] == pytest.approx(look[place] / top(look), abs=0.03)
    best = int(look.argmax())
    assert table(page)[0] == (record.places.names[best], pytest.approx(100 * look[best], abs=0.6))
    assert [weight for _, weight in table(page)] == pytest.approx(100 * np.sort(look)[::-1][:6], abs=0.6)
    # Left of the picture's lines, only those of this word.
    only = ink(page, "#lines")
    page.mouse.move(0, 0)
    drawn(page)
    assert set(strengths_of(page, "box").values()) == {0}
    assert 0 < only < ink(page, "#lines")


def test_hovering_a_region_lights_the_words(open_page, record):
    page = open_page()
    page.locator(".box[data-place='9']").hover(position={"x": 1, "y": 1})
    drawn(page)
    hovered = int(page.locator(".box.current").get_attribute("data-place"))
    row, column = record.maps.mean((0, 1))[hovered], record.maps.mean((0, 1))[:, hovered]
    chips = strengths_of(page, "chip")
    assert [chips[place] for place in range(1, 6)] == pytest.approx(row[1:6] / top(row), abs=0.03)
    page.get_by_text("is seen by").click()
    page.locator(f"#regions [data-place='{hovered}']").hover()
    drawn(page)
    chips = strengths_of(page, "chip")
    assert [chips[place] for place in range(1, 6)] == pytest.approx(column[1:6] / top(column), abs=0.03)
    assert "is seen by" in page.locator("#question").text_content()


def test_the_lines_go_the_way_of_the_table(open_page):
    page = open_page()
    page.locator("#words .chip").nth(2).click()
    page.mouse.move(0, 0)
    drawn(page)
    assert ink(page, "#lines") > 0
    page.get_by_text("is seen by").click()
    page.mouse.move(0, 0)
    drawn(page)
    assert page.evaluate(
        "Array.from(currentLinks()).every(strength => strength === 0)"
    )  # no region sees it here
    page.get_by_text("Text → Text", exact=True).click()
    page.mouse.move(0, 0)
    drawn(page)
    seen = page.evaluate("Array.from(currentLinks()).flatMap((strength, at) => strength ? [at % 5] : [])")
    assert set(seen) == {1}  # the column of the second word


def test_the_light_has_the_size_of_the_box(open_page, record):
    boxes = (record.places.boxes[0], (0.0, 0.0, 39.0, 29.0), *record.places.boxes[2:])
    places = record.places.model_copy(update={"boxes": boxes, "size": (40, 30)})
    page = open_page(AttentionMaps(places, record.maps), picture=Image.new("RGB", (40, 30)))
    page.locator("#regions [data-place='8']").hover()
    drawn(page)
    assert page.locator(".box.current").count() == 1
    assert ink(page, "#shade") == 0


def test_an_old_browser_is_told(browser, record, tmp_path):
    write_page(record, GRAY, tmp_path / "page.html")
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "page.html").as_uri())
    expect(page.locator("#facts")).to_contain_text("This browser is too old for this page")
    expect(page.locator("main")).to_be_hidden()
    page.close()


def test_labels_of_the_detail_say_their_direction(open_page, record):
    page = open_page()
    mean = record.maps.mean((0, 1))
    page.locator("#left .label").nth(1).hover()
    drawn(page)
    assert table(page)[0][0] == record.places.names[mean[2].argmax()]
    page.locator("#right .label").nth(1).hover()
    drawn(page)
    assert table(page)[0][0] == record.places.names[mean[:, 9].argmax()]


def test_the_threshold_hides_what_is_weak(open_page, record):
    page = open_page()
    page.locator("#words .chip").nth(1).click()
    page.mouse.move(0, 0)
    before = ink(page, "[aria-label='Layer 0, mean of its heads'] canvas"), ink(page, "#lines")
    page.locator("#threshold").fill("0.9")
    drawn(page)
    expect(page.locator("#least")).to_have_text("0.90")
    after = ink(page, "[aria-label='Layer 0, mean of its heads'] canvas"), ink(page, "#lines")
    assert 0 < after[0] < before[0]
    assert after[1] < before[1]
    assert all(strength == 0 or strength >= 0.9 for strength in strengths_of(page, "box").values())


def test_everything_works_from_the_keyboard(open_page):
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
    # One stop per group, from top to bottom; the head can be chosen when a layer is.
    assert [group for group, _ in stops] == [
        *("layer", "direction", "words", "regions"),
        *("filter", "threshold", "rescale", "grid", "left", "right"),
    ]
    assert {style for _, style in stops} <= {"solid", "auto"}  # the focus is always seen


def test_keys_of_the_grid(open_page):
    page = open_page()
    page.get_by_role("gridcell", name="Layer 0, mean").focus()
    for key, expected in (
        ("ArrowRight", "Layer 0, Head 0"),
        ("ArrowDown", "Layer 1, Head 0"),
        ("End", "Layer 1, Head 3"),
        ("ArrowRight", "Layer 1, Head 3"),  # rows do not run over
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


def test_keys_of_the_words(open_page, record):
    page = open_page()
    page.locator("#words .chip").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    drawn(page)
    look = record.maps.mean((0, 1))[2]
    assert page.locator(".chip.current").text_content() == "word1"
    assert strengths_of(page, "box")[9] == pytest.approx(look[9] / top(look), abs=0.03)
    assert (
        page.locator("#spoken")
        .text_content()
        .startswith(f"word1 looks at {record.places.names[look.argmax()]}")
    )
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.locator("#threshold").focus()
    drawn(page)
    assert page.locator(".chip[aria-pressed=true]").all_text_contents() == ["word1"]
    page.keyboard.press("Escape")
    drawn(page)
    assert page.locator(".chip[aria-pressed=true]").count() == 0
    assert set(strengths_of(page, "box").values()) == {0}


@pytest.mark.parametrize(("words", "regions", "heads"), [(5, 3, 4), (110, 36, 12)])
def test_a_phone_needs_no_horizontal_scrolling(open_page, words, regions, heads):
    page = open_page(example(8, heads, words, regions), viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.locator("#words .chip").nth(2).tap()
    drawn(page)
    assert page.locator(".chip.current").text_content() == "word1"
    page.get_by_role("gridcell", name="Layer 0, Head 2", exact=True).tap()
    drawn(page)
    expect(page.locator("#detail-title")).to_be_in_viewport()
    for title in ("RoIs → RoIs", "All"):
        page.get_by_text(title, exact=True).first.tap()
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_long_names_do_not_widen_the_page(open_page, record):
    long = "supercalifragilistic" * 10
    tokens, labels = (*record.places.tokens[:-2], long, "[SEP]"), (*record.places.labels[:-1], f"3 {long}")
    places = record.places.model_copy(update={"tokens": tokens, "labels": labels, "image_id": long})
    page = open_page(AttentionMaps(places, record.maps), viewport=PHONE)
    page.locator("#words .chip").nth(5).click()
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_colours_and_motion_follow_the_system(open_page):
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


def test_what_is_written_is_shown_as_it_is(open_page, record):
    token, label = '</script><img src=x onerror="alert(1)">', '1 <b>猫</b> & "é" \' $data'
    tokens, labels = ("[CLS]", token, *record.places.tokens[2:]), ("image", label, *record.places.labels[2:])
    places = record.places.model_copy(update={"tokens": tokens, "labels": labels, "image_id": token})
    page = open_page(AttentionMaps(places, record.maps))
    assert page.title() == f"Attention {token}"
    assert page.locator("#words .chip").nth(1).text_content() == token
    assert page.locator("#regions .chip").nth(1).text_content() == label
    assert page.locator("img").count() == 1  # the picture


def test_without_regions_or_picture(open_page, record):
    places = record.places.model_copy(update={"boxes": (), "labels": (), "size": (0, 0)})
    maps = record.maps[:, :, [*range(7), 11]][..., [*range(7), 11]]

    page = open_page(AttentionMaps(places, maps), picture=None)
    assert page.locator("#picture").is_hidden()
    assert page.get_by_role("radio", name="Text → Text").is_checked()
    assert page.get_by_role("radio", name="Text → RoIs").is_disabled()
    page.locator("#words .chip").nth(1).hover()
    drawn(page)
    assert max(strengths_of(page, "chip").values()) == 1


def test_many_thumbnails_are_drawn_over_many_frames(open_page):
    # 12 layers of 12 heads over 100 places: the page answers meanwhile.
    page = open_page(example(12, 12, words=60, regions=36))
    frames = page.evaluate(
        "() => new Promise(done => { document.querySelector('[value=all]').click(); let frames = 0;"
        " const tick = () => { frames++; if (document.getElementById('grid').dataset.milliseconds) done(frames);"
        " else requestAnimationFrame(tick); }; requestAnimationFrame(tick); })"
    )
    assert frames > 10


def test_screenshots_for_the_documentation(browser, tmp_path):
    record, picture = toy_example(tmp_path)
    layer, head, word = strongest_link(record)
    assert record.maps[layer, head, word].max() > 0.5
    take_screenshots(browser, record, picture, tmp_path)
    for name, size in (("explorer-desktop", (1280, 900)), ("explorer-phone", (720, 1560))):
        assert (tmp_path / f"{name}.png").stat().st_size < 150_000
        with Image.open(tmp_path / f"{name}.png") as shot:
            assert shot.size == size
            assert len(shot.getcolors()) > 100
