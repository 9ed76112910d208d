"""What tests ask of the page's scripts, by a real parser: what they import, and how long their functions are."""

from collections.abc import Iterator

import tree_sitter_javascript
from tree_sitter import Language, Node, Parser

FUNCTIONS = {"function_declaration", "function_expression", "generator_function", "generator_function_declaration",
             "arrow_function", "method_definition"}


def imports(source: str) -> list[str]:
    """What a script imports, whether by import, export ... from, or import()."""
    found = []
    for node in _nodes(source):
        named = node.child_by_field_name("source")
        if node.type == "call_expression" and node.child_by_field_name("function").type == "import":
            named = node.child_by_field_name("arguments").named_child(0)
        if named is not None:
            found.append(named.text.decode().strip("'\"`"))
    return found


def function_lengths(source: str) -> list[tuple[str, int]]:
    """(first line, number of lines) of each function, methods and arrows too, with all that is written inside it."""
    lines = source.splitlines()
    return [(lines[node.start_point.row].strip(), node.end_point.row - node.start_point.row + 1)
            for node in _nodes(source) if node.type in FUNCTIONS]


def _nodes(source: str) -> Iterator[Node]:
    """Every node of a script's tree. Raises ValueError where the parser does not understand the script."""
    waiting = [Parser(Language(tree_sitter_javascript.language())).parse(source.encode()).root_node]
    if waiting[0].has_error:
        raise ValueError("This is not JavaScript, or newer than tree-sitter-javascript knows it.")
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(node.children)
