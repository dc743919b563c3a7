"""The server's page: it fetches nothing from elsewhere; in a browser one watches text appear, and no text is markup."""

import json
import re
import shutil
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser

import pytest
import servers
from conftest import ROOT, TINY, run_program
from PIL import Image

PAGE = ROOT / "sample" / "serving" / "page.html"
KEY = "a key"
WIDE, PHONE = (1280, 900), (375, 740)
QUESTION = "Shall I compare thee to a summer's day?"


def test_the_page_is_one_file_that_asks_only_its_own_server():
    text = PAGE.read_text(encoding="utf-8")
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    Reader().feed(text)
    assert {"main", "script", "style", "textarea"} <= {tag for tag, _ in tags}
    elsewhere = ("src", "srcset", "href", "action", "formaction", "data", "poster", "background", "ping")
    links = [attrs[name] for _, attrs in tags for name in elsewhere if name in attrs]
    assert links == ["data:,"]  # no icon
    assert not {"iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    assert not re.search(r"//\w|@import|url\(|\bimport\b", text)
    assert re.findall(r"fetch\((.*?)[,)]", text) == ["path"]
    assert sorted(re.findall(r'"((?:v1/[^"]*)|settings)"', re.sub(r'\$\("settings"\)|id="settings"', "", text))) == [
        "settings", "v1/chat/completions", "v1/completions",
    ]  # fmt: skip
    policy = next(attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert {"default-src 'none'", "connect-src 'self'"} <= {part.strip() for part in policy.split(";")}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


# In a browser


@pytest.fixture(scope="module")
def programs():
    """(selenium's webdriver, chromium, chromedriver)."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    return webdriver, chromium, chromedriver


@pytest.fixture(scope="module")
def server(programs, tmp_path_factory):
    """The address of a server with the bundled tiny model."""
    model = tmp_path_factory.mktemp("page") / "tiny"
    run_program("converters.from_hf", "--src", TINY, "--dst", model, "--mask-token-id", "auto")
    with servers.server("--api-key", KEY, "--slots", "2", "--dtype", "float32", model=model) as made:
        yield f"{made.url}/"


def until(holds, seconds=120):
    """What `holds` says as soon as it is anything."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Browser:
    """What a user does on the page."""

    def __init__(self, driver, server):
        self.driver, self.server, self.js = driver, server, driver.execute_script
        driver.get(server)
        until(lambda: self.js("return document.getElementById('set-seed') && model.textContent") == "tiny")
        self.type("key", KEY)

    def find(self, id):
        return self.driver.find_element("id", id)

    def type(self, id, text):
        self.find(id).clear()
        self.find(id).send_keys(text)

    def set(self, name, value):
        self.js("panel.open = others.open = true")
        field = self.find(f"set-{name}")
        if field.tag_name == "select":
            field.send_keys(value)
        else:
            self.type(f"set-{name}", str(value))

    def press(self, *keys):
        """Keys one after another where the focus is, those of a tuple at once."""
        chain = pytest.importorskip("selenium.webdriver").ActionChains(self.driver)
        for *held, key in keys:
            for one in held:
                chain.key_down(one)
            chain.send_keys(key)
            for one in held:
                chain.key_up(one)
        chain.perform()

    def write(self, text):
        self.type("text", text)
        self.press((CONTROL, ENTER))

    def finish(self, answers):
        until(lambda: self.js("return document.querySelectorAll('.figures button').length") == answers or self.alert())
        assert self.alert() == ""

    def alert(self):
        return self.find("alert").text

    def pieces(self):
        """(text, class) of each piece of the last answer."""
        answer = "[...document.querySelectorAll('.answer')].at(-1)"
        return [tuple(x) for x in self.js(f"return [...{answer}.children].map(x => [x.textContent, x.className])")]

    def figures(self):
        return self.driver.find_elements("css selector", ".figures span")[-1].text

    def errors(self):
        return [line["message"] for line in self.driver.get_log("browser")]


CONTROL, ALT, ENTER, ESCAPE, RIGHT, TAB, END = "\ue009", "\ue00a", "\ue007", "\ue00c", "\ue014", "\ue004", "\ue010"


@pytest.fixture
def browse(programs, server, tmp_path):
    """Open the page in a window of this size; what it says on the console must be nothing."""
    webdriver, chromium, chromedriver = programs
    opened = []

    def begin(size=WIDE, theme="light"):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        opened.append(driver)
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        colors = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", colors)
        return Browser(driver, server)

    yield begin
    for driver in opened:
        driver.quit()


def asked(server, path, **body):
    """What the server answers to the same request without a stream."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server + path, json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))


# What is asked for; and at each change of an answer how many places are masked, may still change, and are final.
WATCH = """
  window.sent = [];
  const ask = window.fetch;
  window.fetch = (path, options) => { sent.push(JSON.parse(options.body)); return ask(path, options); };
  window.seen = [];
  new MutationObserver(() => {
    const answer = [...document.querySelectorAll('.answer')].at(-1);
    if (answer) seen.push(['.mask', '.draft', '.token:not(.draft)'].map(kind => answer.querySelectorAll(kind).length));
  }).observe(conversation, {subtree: true, childList: true, characterData: true});
"""


@pytest.mark.journey
@pytest.mark.xdist_group("page")  # one server for all
@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (PHONE, "dark")])
def test_a_chat_is_written_before_ones_eyes(browse, size, theme):
    page = browse(size, theme)
    settings = {"max_tokens": 192, "block_length": 32, "seed": 5, "eos": "never"}
    for name, value in settings.items():
        page.set(name, value)
    page.js("panel.open = innerWidth > 900")
    page.js(WATCH)
    page.write(QUESTION)
    page.finish(1)

    seen = page.js("return seen")
    assert any(masked and draft for masked, draft, _ in seen)
    assert any(draft and final for _, draft, final in seen)
    assert len({final for *_, final in seen}) > 2
    pieces = page.pieces()
    assert {kind for _, kind in pieces} == {"token"}
    messages = [{"role": "user", "content": QUESTION}]
    whole = asked(page.server, "v1/chat/completions", messages=messages, **settings)
    text, usage = whole["choices"][0]["message"]["content"], whole["usage"]
    assert "".join(piece for piece, _ in pieces) == text
    assert page.js("return said.textContent") == text
    assert page.figures().startswith(
        f"192 tokens in {usage['forward_passes']} forward passes · {usage['tokens_per_forward']:.2f} tokens per forward"
    )

    page.write("And now?")
    page.finish(2)
    sent = page.js("return sent.at(-1)")
    assert {name: sent[name] for name in settings} == settings
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And now?"}]
    assert sent["messages"] == messages

    paper = page.js("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (theme == "dark")
    shades = page.js("return [...document.querySelectorAll('.token')].map(x => getComputedStyle(x).backgroundColor)")
    assert len(set(shades)) > 20
    for is_open in (False, True):
        page.js("panel.open = others.open = arguments[0]", is_open)
        assert page.js("return document.documentElement.scrollWidth") <= size[0]
    hosts = page.js("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin + '/')")
    assert set(hosts) == {page.server}
    assert page.errors() == []


@pytest.mark.journey
@pytest.mark.xdist_group("page")  # one server for all
def test_a_hole_is_filled_and_the_picture_saved(browse, tmp_path):
    page = browse()
    page.js(WATCH)
    page.js("document.querySelector('[value=completion]').click()")
    page.set("max_tokens", 50)
    page.set("block_length", 8)
    page.js("document.querySelector('[aria-label=\"temperature, slider\"]').focus()")
    page.press(RIGHT)  # from the model's own 0.8
    page.type("text", "ROMEO:\nMy <b>")
    page.press((ALT, "m"), "3", END)
    page.find("hole").click()
    page.press("2", END, *" lord.")
    text = "ROMEO:\nMy <b><mask:3><mask:2> lord."
    assert page.find("text").get_attribute("value") == text
    page.press((CONTROL, ENTER))
    page.finish(1)
    sent = page.js("return sent.at(-1)")
    assert (sent["prompt"], sent["holes"], "max_tokens" in sent) == (text, True, False)
    assert (sent["temperature"], sent["block_length"], "threshold" in sent) == (0.85, 8, False)
    first, *tokens, last = page.pieces()
    assert (first, last) == (("ROMEO:\nMy <b>", "given"), (" lord.", "given"))
    assert {kind for _, kind in tokens if kind != "given"} == {"token"}
    assert page.figures().startswith("5 tokens in 5 forward passes")

    page.driver.find_element("css selector", ".figures button").click()
    [saved] = until(lambda: list(tmp_path.glob("unmasking-tiny-*.png")))
    picture = Image.open(saved).convert("RGB")
    width = page.js("return document.querySelector('.answer').getBoundingClientRect().width")
    assert picture.width == int(2 * (width + 56))
    painted = {color for _, color in picture.getcolors(1 << 24)}
    shades = page.js(
        "return [...document.querySelectorAll('.token')].map(span => {"
        "  const pen = new OffscreenCanvas(1, 1).getContext('2d');"
        "  pen.fillStyle = getComputedStyle(span).backgroundColor; pen.fillRect(0, 0, 1, 1);"
        "  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3) })"
    )
    assert {tuple(shade) for shade in shades} <= painted
    assert page.errors() == []

    page.js("document.querySelector('[type=reset]').click()")
    page.press((CONTROL, ENTER))
    page.finish(2)
    assert not {"temperature", "block_length"} & set(page.js("return sent.at(-1)"))


@pytest.mark.journey
@pytest.mark.xdist_group("page")  # one server for all
def test_keys_reach_everything_and_escape_stops(browse):
    page = browse()
    page.set("max_tokens", 800)
    page.set("block_length", 200)
    page.set("eos", "never")
    page.write("<img src=x onerror=alert(1)>")
    until(lambda: page.js("return document.querySelectorAll('.token').length > 2") or page.alert())
    page.press(ESCAPE)
    page.finish(1)
    assert page.figures().startswith("stopped at forward pass ")
    assert page.js("return document.querySelector('.asked').textContent") == "<img src=x onerror=alert(1)>"
    assert not page.driver.find_elements("css selector", "img")
    assert page.js("return said.textContent") == ""  # only what is finished is announced

    page.js("document.querySelector('.answer').focus()")
    page.press(RIGHT, RIGHT)
    token, tells = page.js("return [document.activeElement.textContent, readout.textContent]")
    assert re.fullmatch(r'"(.*)" · pass \d+ · \d+\.\d % sure', tells)
    assert token == page.js("return [...document.querySelectorAll('.token')][1].textContent")

    page.js("document.activeElement.blur(); scrollTo(0, 0); panel.open = others.open = true")
    wanted = page.js(
        "return [...document.querySelectorAll('button, input:not([type=radio]), select, textarea, summary, .answer')]"
        ".filter(x => x.checkVisibility()).length"
    )
    reached = {}
    for _ in range(wanted + 5):
        page.press(TAB)
        at, tag, outline = page.js(
            "const x = document.activeElement, on = x.type === 'radio' ? x.parentElement : x;"
            "return [[...document.querySelectorAll('*')].indexOf(x), x.tagName, getComputedStyle(on).outlineStyle]"
        )
        if tag != "BODY":
            reached[at] = tag, outline
    assert [tag for tag, outline in reached.values() if outline == "none"] == []
    assert len(reached) == wanted + 1  # one of the two ways to write
    named = page.js(
        "return [...document.querySelectorAll('input, select, textarea')].filter(x => x.checkVisibility())"
        ".filter(x => !x.labels.length && !x.ariaLabel).map(x => x.outerHTML)"
    )
    assert named == []
    assert page.errors() == []


@pytest.mark.journey
@pytest.mark.xdist_group("page")  # one server for all
def test_what_is_refused_is_said_and_nothing_typed_is_lost(browse):
    page = browse()
    page.type("key", "another key")
    page.write(QUESTION)
    assert "key" in until(page.alert)
    page.type("key", KEY)
    page.set("threshold", 7)
    page.press((CONTROL, ENTER))
    assert "threshold must be above 0 and at most 1" in until(lambda: "threshold" in page.alert() and page.alert())
    assert page.find("text").get_attribute("value") == QUESTION
    assert not page.driver.find_elements("css selector", ".turn")
    assert all("Failed to load resource" in line for line in page.errors())

    page.js(WATCH)
    page.set("threshold", "")
    page.set("forbid", "seven")
    page.js("others.open = false")
    page.press((CONTROL, ENTER))
    assert page.js("return [sent.length, others.open, document.activeElement.id]") == [0, True, "set-forbid"]

    page.js("theme.value = 'dark'; theme.onchange()")
    page.driver.refresh()
    until(lambda: page.js("return model.textContent") == "tiny")
    assert page.js("return getComputedStyle(document.body).colorScheme") == "dark"
    assert page.find("key").get_attribute("value") == KEY
    assert page.js("return Object.keys(localStorage)") == ["theme"]
