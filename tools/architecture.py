"""Draw the shelves from the imports: ``python tools/architecture.py`` writes the picture in ``docs/architecture.md``.

An arrow stands for what a shelf takes from another; those that follow from longer ways are left out.
"""

from pathlib import Path
from typing import Final

import grimp
import networkx as nx

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "architecture.md"
PACKAGES: Final = ("trady.planner", "trady.simulator", "trady.engine")
#: Files of one room that every shelf may use: arrows to them would say nothing.
WORDS: Final = frozenset(
    f"trady.planner.{name}" for name in ("errors", "files", "options", "parallel", "records", "units")
)
_START, _END = "<!-- made by tools/architecture.py -->\n", "<!-- end -->"


def shelf_of(module: str) -> str:
    """The shelf of a module: ``planner.ledger``, ``simulator``; the engine's own door is that of ``engine.engine``."""
    if module == "trady.engine":
        return "engine.engine"
    parts = module.split(".")
    depth = 2 if parts[1] == "simulator" or len(parts) < 3 else 3
    return ".".join(parts[1:depth])


def shelves() -> nx.DiGraph:
    """Shelves and what they take from one another."""
    imports = grimp.build_graph(*PACKAGES)
    graph = nx.DiGraph()
    for module in sorted(imports.modules - WORDS - set(PACKAGES)):
        for other in imports.find_modules_directly_imported_by(module) - WORDS:
            if shelf_of(module) != shelf_of(other):
                graph.add_edge(shelf_of(module), shelf_of(other))
    return graph


def picture() -> str:
    """The shelves as a Mermaid graph, which GitHub draws."""
    graph = nx.transitive_reduction(shelves())
    lines = ["```mermaid", "graph TD"]
    for package in ("engine", "simulator", "planner"):
        names = sorted(name for name in graph if name.split(".")[0] == package)
        lines += [f"  subgraph {package}", *(f'    {_key(name)}["{name.split(".")[-1]}"]' for name in names), "  end"]
    lines += [f"  {_key(start)} --> {_key(end)}" for start, end in sorted(graph.edges)]
    return "\n".join([*lines, "```", ""])


def page() -> str:
    """The whole page with the picture made anew."""
    head, _, rest = PAGE.read_text().partition(_START)
    return head + _START + picture() + _END + rest.partition(_END)[2]


def _key(name: str) -> str:
    return "shelf_" + name.replace(".", "_")


if __name__ == "__main__":
    PAGE.write_text(page())
