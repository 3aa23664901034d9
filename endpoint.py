"""A judge behind an OpenAI-compatible endpoint: many requests in flight, patience, no surprises.

    POST base_url/chat/completions  {"model", "messages", "temperature", "max_tokens", "seed"}
    200                             text, finish_reason, usage
    408 409 425 429 5xx, no reply   wait (Retry-After, else longer each time), ask again
    401 403 404, a redirect         stop: no other request would fare better
    any other 4xx                   leave this request out

The key comes from the environment and goes into the Authorization header, nowhere else. Only the
content of a reply is read: what a server sends beside it (reasoning_content) is no part of it.
"""

import json
import math
import random
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from itertools import islice
from urllib.parse import urlsplit

from config import UserError

RETRY = {408, 409, 425, 429}  # and every 5xx
HOPELESS = {301, 302, 303, 307, 308, 401, 403, 404}
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: no character
REPLY_BYTES = 16 * 2**20
TOKENS = "prompt_tokens", "completion_tokens", "total_tokens"  # what is kept of usage
LONGEST_PAUSE = 300.0  # seconds, whatever Retry-After says


class Unanswered(Exception):
    """A request without a reply. `fatal`: no other request would fare better; `refused`: this one
    would not another time."""

    def __init__(self, reason, fatal=False, refused=False):
        super().__init__(reason)
        self.fatal, self.refused = fatal, refused


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None  # a redirect would carry the key to another host: it becomes an HTTPError


def check_endpoint(base_url, key):
    """UserError for an address or key that cannot be used; the message never shows the key."""
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, a port beyond 65535
        usable = False
    if not usable:
        raise UserError(f"--base_url {base_url!r}: must be like http://host:port/v1")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError("OPENAI_API_KEY holds a space, line break or character no key can have")


def read_body(response, deadline):
    """The bytes of a reply. A socket's timeout starts anew with every packet, the deadline not."""
    body = b""
    while chunk := response.read1(65536):
        body += chunk
        if len(body) > REPLY_BYTES:
            raise ValueError("reply larger than 16 MB")
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    return body


def what_it_says(error, deadline):
    """The body of a refusal, or why there is none: a server in trouble may break off here, too."""
    try:
        return read_body(error, deadline).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError) as trouble:
        return f"({trouble or type(trouble).__name__})"


def read_reply(body):
    """{"raw", "finish", "usage", "logprobs"} of a chat completion; the log-probs of its tokens are
    None where the server sends none. ValueError if it is something else.

    A log's strict reader must be able to read it again: so of usage only counts are kept, and the
    finish reason must be printable. NUL in the text is the writer's to replace.
    """
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        text = choice["message"]["content"] or ""  # null when only reasoning or a refusal came
        finish, usage = choice.get("finish_reason") or "unknown", value.get("usage")
        tokens = (choice.get("logprobs") or {}).get("content")
        logprobs = None if tokens is None else [float(token["logprob"]) for token in tokens]
        if not all(map(math.isfinite, logprobs or ())):
            raise ValueError
        if not isinstance(text, str) or not isinstance(finish, str) or not finish.isprintable():
            raise ValueError
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError("the reply is not a chat completion") from None
    text, usage = HALF.sub("\ufffd", text), usage if type(usage) is dict else {}
    usage = {k: usage[k] for k in TOKENS if type(usage.get(k)) is int and 0 <= usage[k] < 2**63}
    return {"raw": text, "finish": finish, "usage": usage, "logprobs": logprobs}


def one_line(text):
    """What a server said, so that it can stand within a line, as long as it may be."""
    text = " ".join(text.split())[:300]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def retry_after(headers):
    """Seconds that a Retry-After header (a number or a date) asks for, 0 without one."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = 0
    return min(max(seconds, 0.0), LONGEST_PAUSE) if math.isfinite(seconds) else 0


def post(body, cfg, key):
    """One request to the endpoint, again after a pause while that may help.

    Returns what read_reply does and {"latency_s", "tries"}. Raises Unanswered.
    """
    url = cfg.base_url.rstrip("/") + "/chat/completions"
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    proxy = [urllib.request.ProxyHandler({})] if local else []
    opener = urllib.request.build_opener(NoRedirect, *proxy)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)

    def redact(text):  # some endpoints repeat the key; "EMPTY" and the like are no keys
        return text.replace(key, "[key]") if len(key) >= 8 else text

    start = time.monotonic()
    for tries in range(1, cfg.retries + 2):
        pause = cfg.backoff_s * 2 ** (tries - 1) * (1 + random.random()) / 2
        begin = time.monotonic()
        try:
            with opener.open(request, timeout=cfg.timeout_s) as response:
                reply = read_reply(read_body(response, begin + cfg.timeout_s))
            latency = round(time.monotonic() - start, 3)
            reply |= {name: redact(reply[name]) for name in ("raw", "finish")}
            return reply | {"latency_s": latency, "tries": tries}
        except urllib.error.HTTPError as error:
            with error:
                text = what_it_says(error, begin + cfg.timeout_s)
            reason = redact(f"HTTP {error.code}: {one_line(text)}")
            if error.code not in RETRY and error.code < 500:
                fatal = error.code in HOPELESS
                raise Unanswered(reason, fatal, refused=not fatal) from None
            pause = max(pause, retry_after(error.headers))
        except (OSError, HTTPException, ValueError) as error:
            text = str(getattr(error, "reason", error))
            reason = redact(one_line(text) or type(error).__name__)
        if tries <= cfg.retries:
            time.sleep(pause)
    raise Unanswered(f"{reason} ({tries} tries)")


def ask_http(bodies, cfg, key):
    """Yields (index, reply or Unanswered) as they arrive, `concurrency` requests at a time.

    When the endpoint is beyond hope (fatal, or more failures in a row than requests in flight) no
    more are sent; replies on their way are still delivered. Unsent requests yield nothing.
    """
    todo, running, failures = enumerate(bodies), {}, 0
    pool = ThreadPoolExecutor(cfg.concurrency)
    try:
        while True:
            if failures <= cfg.concurrency:
                for i, body in islice(todo, cfg.concurrency - len(running)):
                    running[pool.submit(post, body, cfg, key)] = i
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                i, error = running.pop(future), future.exception()
                if error is None:
                    failures = 0
                    yield i, future.result()
                elif isinstance(error, Unanswered):
                    # Who refuses a request is there; a row of refusals is no reason to stop
                    failures = math.inf if error.fatal else failures + (not error.refused)
                    yield i, error
                else:
                    raise error
    finally:  # nobody waits for a pause between two tries: Ctrl-C ends the run at once
        pool.shutdown(wait=False, cancel_futures=True)
