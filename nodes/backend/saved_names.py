"""Names that the user gives to files: tokens such as %date:yyyy-MM-dd% expanded, and only what every system takes.

ComfyUI's own Save nodes get %date:...% and %Node.widget% expanded by the page, which does so for a list of core's nodes
only (extension Comfy.SaveImageExtraOutput, the same in ComfyUI 0.3.75 and 0.33.0), and %year% and the like by
folder_paths.get_save_image_path. So for our nodes, and for graphs sent without a page, both are done here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from ...trainer.base.errors import UserError

MAX_PART = 200
"""Bytes of a file's name without its number; most systems take 255 in all."""

_DATE = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_OF_THE_DATE = {"d": "tm_mday", "M": "tm_mon", "h": "tm_hour", "m": "tm_min", "s": "tm_sec"}
_OF_COMFYUI = {"%year%": "%Y", "%month%": "%m", "%day%": "%d", "%hour%": "%H", "%minute%": "%M", "%second%": "%S"}

_REFUSED = re.compile(r'[:*?"<>|\x00-\x1f\x7f]')
"""What Windows takes in no name; separators are dealt with before."""

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?", re.IGNORECASE)


def expand(name: str, prompt: Mapping | None) -> str:
    """A name with the tokens replaced that ComfyUI's own Save nodes know; others stay.

    Args:
        prompt: the graph, for %Node.widget%: the first node of this class or title, with / and the like made _.
    """
    now = time.localtime()

    def replaced(found: re.Match) -> str:
        parts = found[1].split(".")
        if len(parts) == 2:
            value = _widget(prompt or {}, *parts)
            return found[0] if value is None else re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", value)
        if parts[0].startswith("date:"):
            return _DATE.sub(lambda token: _date(token[0], now), parts[0].removeprefix("date:"))
        return found[0]

    name = re.sub("%([^%]+)%", replaced, name)
    for token, form in _OF_COMFYUI.items():
        name = name.replace(token, time.strftime(form, now))
    return name.replace("%width%", "0").replace("%height%", "0")


def _date(token: str, now: time.struct_time) -> str:
    if token[0] == "y":
        return {"yy": str(now.tm_year)[2:], "yyyy": str(now.tm_year)}.get(token, token)
    return str(getattr(now, _OF_THE_DATE[token[0]])).zfill(len(token))


def _widget(prompt: Mapping, node: str, widget: str) -> str | None:
    """The value of a widget, None if there is no such node or it is linked."""
    by_class = [entry for entry in prompt.values() if entry.get("class_type") == node]
    by_title = [entry for entry in prompt.values() if entry.get("_meta", {}).get("title") == node]
    for entry in (by_class or by_title)[:1]:
        value = entry.get("inputs", {}).get(widget)
        if value is not None and not isinstance(value, (list, dict)):
            return str(value).lower() if isinstance(value, bool) else str(value)
    return None


def check_unexpanded(filename: str) -> None:
    """As `check`, for a name whose tokens are not expanded yet."""
    check(re.sub("%[^%]+%", "0", filename))


def check(filename: str) -> tuple[str, ...]:
    """The parts of a name between / (or Windows' separator), after a check that each is legal on every system.

    Args:
        filename: relative to a folder of ComfyUI, its tokens expanded.

    Raises:
        UserError: it is empty, leads out of the folder, or has a part that some system refuses.
    """
    text = filename.strip().replace("\\", "/")
    text = text[: -len(".safetensors")] if text.lower().endswith(".safetensors") else text
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or text.startswith("/") or re.match("[A-Za-z]:/", text) or text.endswith("/"):
        raise UserError(f"filename {filename!r} leads out of the loras folder, or names no file in it; give a name "
                        "such as wantune/my_lora.")
    for part in parts:
        fault = _fault(part)
        if fault:
            shown = filename if len(filename) < 80 else f"{filename[:60]}..."
            raise UserError(f"filename {shown!r} {fault}; give a name such as wantune/my_lora.")
    return tuple(parts)


def _fault(part: str) -> str:
    refused = _REFUSED.search(part)
    if refused:
        return f"has the character {refused[0]!r}, which not every system takes in a name"
    if _RESERVED.fullmatch(part):
        return f"has the part {part!r}, which Windows keeps for a device"
    if part != part.strip() or part.endswith("."):
        return f"has the part {part!r}, which begins or ends with a space or ends with a dot, which Windows removes"
    if len(part.encode(errors="surrogatepass")) > MAX_PART:
        return f"has a part of {len(part)} characters, which is too long"
    if not part.isprintable():
        return "has characters that cannot be shown"
    return ""
