"""What the project says of itself is true: dependencies in step, commands in the README, no
machine's paths.
"""

import re
import subprocess
import tomllib

import yaml

import tlcourse


def pyproject(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_environment_and_pyproject_are_in_step(repository):
    conda = yaml.safe_load((repository / "environment.yml").read_text())["dependencies"]
    pip = conda[-1]["pip"]
    assert pip == [*pyproject(repository)["dependencies"], "-e ."]
    assert conda[0] == f"python{pyproject(repository)['requires-python']}"


def test_every_dependency_has_its_reason(repository):
    lines = (repository / "environment.yml").read_text().split("dependencies:")[1].splitlines()
    bare = [
        line
        for line in lines
        if line.strip().startswith("- ") and not line.strip().endswith(":") and " # " not in line
    ]
    assert bare == []


def test_the_readme_holds_the_two_commands(repository):
    readme = (repository / "README.md").read_text()
    assert re.search(r"^pip install -e \. && tlcourse lab$", readme, re.M)
    assert re.search(r'^pip install -e "\.\[test\]" && pytest$', readme, re.M)


def test_what_the_readme_links_to_is_there(repository):
    links = re.findall(r"\]\(([^)#:]+)\)", (repository / "README.md").read_text())
    assert len(links) >= 5
    assert [link for link in links if not (repository / link).exists()] == []


def test_every_notebook_stands_in_the_readme(repository):
    readme = (repository / "README.md").read_text()
    assert [
        path.name
        for path in (repository / "notebooks").glob("*.ipynb")
        if f"notebooks/{path.name}" not in readme
    ] == []


def test_commands_named_in_the_prose_exist(repository):
    from tlcourse.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands} | {
        "data"
    }
    texts = [
        (repository / name).read_text()
        for name in ("README.md", "CONTRIBUTING.md", "data/README.md")
    ]
    named = {
        word for text in texts for word in re.findall(r"(?:`|^|&& )tlcourse ([a-z]+)", text, re.M)
    }
    assert {"lab", "run", "claims"} <= named <= known


def test_versions_agree(repository):
    assert f"version: {tlcourse.__version__}\n" in (repository / "CITATION.cff").read_text()
    assert f"## {tlcourse.__version__}" in (repository / "CHANGELOG.md").read_text()


def test_the_package_is_typed(repository):
    assert (repository / "tlcourse" / "py.typed").exists()


def test_files_on_board_stay_small(repository):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    sizes = {name: (repository / name).stat().st_size for name in listed if name.endswith(".ipynb")}
    assert [name for name, size in sizes.items() if size > 1e6] == []
