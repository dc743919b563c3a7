"""What mkdocs is told beside mkdocs.yml: where the pages are, and of what the API reference is made.

Pages keep their places in the repository (README.md, docs/training.md, examples/data/LICENSES.md), and so does each
other file that one of them links to: every link leads on the site where it leads on GitHub.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
REFERENCE = "docs/reference.md"
# Heading of the names of each room of the library.
SUBJECTS = {
    "checkpoint": "Model folders",
    "text": "Tokenizers",
    "writing": "Text in, text out",
    "sampling": "Writing by unmasking",
    "likelihood": "Likelihood",
    "diffusion": "Training",
    "cross_entropy": "Training",
    "model": "The model",
    "sharding": "Many devices",
    "errors": "Errors",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Name every file by its place in the repository, and add those outside of docs/."""
    docs = Path(config.docs_dir)
    for file in [f for f in files if f.src_dir == config.docs_dir]:
        files.remove(file)
        files.append(_of_repository((docs / file.src_uri).relative_to(ROOT).as_posix(), config))
    for name in BESIDE:
        files.append(_of_repository(name, config))
    for name in sorted({name for page in list(files.documentation_pages()) for name in _links(page)}):
        if files.get_file_from_path(name) is None:
            files.append(_of_repository(name, config))
    files.append(File.generated(config, REFERENCE, content=reference()))
    return files


def _of_repository(name: str, config: MkDocsConfig) -> File:
    # Browsers show a text, and offer to keep a program.
    as_text = f"{name}.txt" if name.endswith(".py") else None
    return File(name, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=as_text)


def _links(page: File) -> list[str]:
    """Files of the repository that a page links to."""
    folder = (ROOT / page.src_uri).parent
    places = [(folder / link).resolve() for link in LINK.findall(page.content_string)]
    return [place.relative_to(ROOT).as_posix() for place in places if place.is_file() and place.is_relative_to(ROOT)]


def reference() -> str:
    """The page of what `qwen3llada_jax` exports, by subject; mkdocstrings writes each name's docstring into it."""
    tree = ast.parse((ROOT / "qwen3llada_jax" / "__init__.py").read_text(encoding="utf-8"))
    names: dict[str, list[str]] = {heading: [] for heading in SUBJECTS.values()}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "qwen3llada_jax":
            path = str(node.module).split(".")
            for alias in node.names:
                name = alias.asname or alias.name
                # Where a module of the package has the same name, mkdocstrings would take that.
                place = node.module if name == path[1] else path[0]
                names[SUBJECTS[path[1]]].append(f"{place}.{name}")
    parts = ["# Python API\n\nWhat `import qwen3llada_jax as q` gives: `q.load`, `q.generate` and so on."]
    for heading, exported in names.items():
        parts += [f"## {heading}", *(f"::: {name}" for name in exported)]
    return "\n\n".join(parts) + "\n"
