"""Shell completion: what could stand where the cursor is, and the scripts by which bash, zsh and fish ask for it.

The scripts are a few lines each and know nothing: at every TAB they call `prefkit completion SHELL -- WORD …` with the
words up to the cursor, and offer what it prints, a candidate and its meaning a line. So commands, options and choices
come from the argparse parser itself, pipelines and `--set` paths from the files that there are, and nothing can become
stale. It costs a tenth of a second a TAB, since nothing heavy is imported. Where nothing is offered, the shell
completes file names. (A generator of static scripts, such as shtab, could not know a pipeline's paths; argcomplete
could, for one more dependency at run time and its own way into every start of the program.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prefkit import config
from prefkit.errors import UsageError

SCRIPTS = {
    "bash": """# prefkit completion for bash: eval "$(prefkit completion bash)"
_prefkit() {
    local word meaning
    COMPREPLY=()
    while IFS=$'\\t' read -r word meaning; do
        COMPREPLY+=("$word")
    done < <("${COMP_WORDS[0]}" completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o bashdefault -o default -F _prefkit prefkit
""",
    "zsh": """#compdef prefkit
# prefkit completion for zsh, after compinit: eval "$(prefkit completion zsh)"
_prefkit() {
    local word meaning
    local -a found
    while IFS=$'\\t' read -r word meaning; do
        found+=("${word//:/\\\\:}:$meaning")
    done < <("${words[1]}" completion zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( $#found == 1 )) && [[ ${found[1]%%:*} == *= ]]; then
        compadd -S '' -- "${found[1]%%:*}"
    elif (( $#found )); then
        _describe prefkit found
    else
        _files
    fi
}
compdef _prefkit prefkit
""",
    "fish": """# prefkit completion for fish: prefkit completion fish | source
function __prefkit_finds
    set -l words (commandline -opc)
    set -g __prefkit_found ($words[1] completion fish -- $words[2..-1] (commandline -ct) 2>/dev/null)
    test (count $__prefkit_found) -gt 0
end
complete -c prefkit -f -n __prefkit_finds -a '$__prefkit_found'
""",
}

Candidates = Iterator[tuple[str, str]]  # each with its meaning


def complete(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[tuple[str, str]]:
    """What the last of `words` (those after `prefkit`) may be completed to; nothing where a file name is wanted."""
    *before, start = _joined(words)
    commands = _commands(parser)
    if not before:
        found: Candidates = ((name, text) for name, (_, text) in commands.items())
    elif before[0] not in commands:
        return []
    else:
        found = _of_command(commands[before[0]][0], before[1:], start)
    return sorted({(word, " ".join(text.replace("%%", "%").split())) for word, text in found if word.startswith(start)})


def _joined(words: Sequence[str]) -> list[str]:
    """The words without the "=" of `--option=value`, at which bash cuts words, as others do not."""
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if word == "=" and found and found[-1].startswith("--"):
            continue
        found += [option, value] if option.startswith("--") and equals else [word]
    return [*found, ""] if words and words[-1] == "=" else found or [""]


def _commands(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Each command's parser and its help."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {name: (sub, texts[name]) for name, sub in action.choices.items()}


def _of_command(parser: argparse.ArgumentParser, before: Sequence[str], start: str) -> Candidates:
    """Values of the option that is being given, else options, else the next positional argument's values."""
    options = {name: action for action in parser._actions for name in action.option_strings}
    waiting = options.get(before[-1]) if before else None
    if waiting is not None and waiting.nargs != 0:
        return _values(waiting, before)
    if start.startswith("-"):
        used = {id(options[word]) for word in before if word in options}
        return (
            (name, action.help or "")
            for name, action in options.items()
            if name.startswith("--") and (id(action) not in used or isinstance(action, argparse._AppendAction))
        )
    given = len(_positionals(options, before))
    places = [action for action in parser._actions if not action.option_strings]
    place = places[min(given, len(places) - 1)] if places else None
    if place is None or (given >= len(places) and place.nargs not in ("*", "+")):
        return iter(())
    return _values(place, before)


def _positionals(options: Mapping[str, argparse.Action], before: Sequence[str]) -> list[str]:
    """The words that are neither options nor values of options."""
    return [
        word
        for number, word in enumerate(before)
        if not word.startswith("-")
        and not (number and before[number - 1] in options and options[before[number - 1]].nargs != 0)
    ]


def _values(action: argparse.Action, before: Sequence[str]) -> Candidates:
    if action.choices:
        return ((str(choice), "") for choice in action.choices)
    known: dict[str, Callable[[Sequence[str]], Candidates]] = {
        "pipeline": _pipelines,
        "overrides": _paths,
        "recipe": lambda _: ((name, text) for name, text in _pipelines(()) if name in config.recipes()),
    }
    return known[action.dest](before) if action.dest in known else iter(())


def _pipelines(_before: Sequence[str]) -> Candidates:
    for name in config.shipped_pipelines():
        yield name, str(config.load_pipeline(name).table.get("description", ""))


def _paths(before: Sequence[str]) -> Candidates:
    """The options that stand in the pipeline on the line, as --set names them."""
    for word in before:
        try:
            table = config.load_pipeline(word).table
        except (UsageError, OSError):  # it is no pipeline, or not yet a whole one
            continue
        for path, value in _leaves(table, ()):
            yield f"{path}=", f"now {value!r:.60}"
        return


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Dotted paths of all values, list entries by name or use where these tell them apart, else by index."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        names = [item.get("name", item.get("use")) for item in value]
        for number, (name, item) in enumerate(zip(names, value, strict=True)):
            unique = isinstance(name, str) and names.count(name) == 1 and "." not in name
            yield from _leaves(item, (*path, str(name) if unique else str(number)))
    elif len(path) > 1:
        yield ".".join(path), value
