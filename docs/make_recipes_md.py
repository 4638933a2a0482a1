"""Write docs/recipes.md from the recipe's pydantic models: ``python docs/make_recipes_md.py``.

The text of every key is the docstring under its field, so the page cannot say other than the code.
"""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rcgrpo import config
from rcgrpo.conditioning import TokenSampler
from rcgrpo.environments.bfcl.suite import BfclConfig
from rcgrpo.environments.custom import CustomConfig
from rcgrpo.environments.toolworld.config import ToolWorldConfig

PAGE = Path(__file__).with_name("recipes.md")

STAGES = tuple(
    (f'`[stages.NAME]`, `kind = "{get_args(model.model_fields["kind"].annotation)[0]}"`', model)
    for model in get_args(get_args(config.StageTable)[0])
)

TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The recipe itself", config.Recipe),
    ("`[toolworld]`", ToolWorldConfig),
    ("`[bfcl]`", BfclConfig),
    ("`[custom]`", CustomConfig),
    ("`[model]`", config.ModelTable),
    ("`[model.lora]`", config.LoraTable),
    ("`[chat]`", config.ChatTable),
    ("`[rollout]`", config.RolloutTable),
    ("`[rollout.vllm]`", config.VllmTable),
    *STAGES,
    ("`sampler` and `probe`", TokenSampler),
    ("`[stages.NAME.replay]`", config.ReplayTable),
    ("`[stages.NAME.shape]`", config.ShapeTable),
    ("`[stages.NAME.optimiser]`", config.OptimiserTable),
    ("`[evaluate]`", config.EvaluateTable),
    ("`[[evaluate.rows]]`", config.RowTable),
    ("`[ablation]`", config.AblationTable),
    ("`[[ablation.arms]]`", config.ArmTable),
)

KIND_TEXT = ("Says which kind of stage this is.", "How tokens are drawn; `fixed` is plain GRPO.")
"""The one field without a docstring of its own, ``kind``: of a stage, of a sampler."""

HEAD = """# Recipes: every key

<!-- Written by docs/make_recipes_md.py from the models' docstrings: edit those, then run the script. -->

A recipe is a TOML file that says all a run does: a world (exactly one of `[toolworld]`, `[bfcl]`, `[custom]`), a
model, stages, and the rows of the final table. An unknown key is an error, and so is an option without effect.

```
rcgrpo run recipes/demo.toml --dry-run                 # the resolved recipe and the plan; nothing is run
rcgrpo run recipes/demo.toml --set stages.grpo.steps=10 --set seed=1 --out runs/short
```

`--set` takes `key=value`, the value written in TOML (a bare word is a string). A stage starts from `base` (the
recipe's model) or from another stage's checkpoint, so stages form a graph: the order in the file does not matter.
A finished stage is skipped. If its settings have changed since, the run stops and says so: take another `--out`, or
`--redo STAGE` to do it and all that follows again.

What many stages share is written once: the keys of `[defaults.KIND]`, such as `[defaults.reinforce]`, hold for every
stage of that kind that does not set them itself. Nested tables are merged key by key; a `sampler` of another kind
replaces the default one. The resolved recipe has the keys in the stages and no `defaults`.
"""


def type_name(annotation: Any) -> str:
    """A type in the words of a TOML author."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args if a is not type(None))
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is tuple:
        return f"list of {type_name(args[0])}" if Ellipsis in args else f"{len(args)} x {type_name(args[0])}"
    if origin is dict:
        return "tables by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    if annotation in names:
        return names[annotation]
    return " or ".join(f'`"{member}"`' for member in annotation)  # an enum


def default_of(field: FieldInfo) -> str:
    """What holds where the key is absent."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        set_fields = value.model_dump(exclude_none=True, exclude_defaults=not isinstance(value, TokenSampler))
        return "`{" + ", ".join(f'{k} = "{v}"' for k, v in set_fields.items()) + "}`" if set_fields else "its defaults"
    if value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in value) + "]`"
    return f"`{value}`"


def limits_of(field: FieldInfo) -> str:
    """Bounds of a number, such as ``>= 1``."""
    signs = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
    found = [f"{sign} {getattr(m, name)}" for name, sign in signs for m in field.metadata if hasattr(m, name)]
    return ", ".join(found)


def section(title: str, model: type[BaseModel]) -> str:
    """One table: its docstring, then a line per key."""
    lines = [f"## {title}", "", one_line(inspect.cleandoc(model.__doc__ or "")), ""]
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        text = one_line(field.description or KIND_TEXT[model is TokenSampler])
        kind = type_name(field.annotation)
        if limits := limits_of(field):
            kind += f", {limits}"
        lines.append(f"| `{name}` | {kind} | {default_of(field)} | {text} |")
    return "\n".join(lines)


def one_line(text: str) -> str:
    """Docstring text for a table cell: one paragraph, Sphinx roles as plain code."""
    for role in (":class:", ":meth:", ":func:"):
        text = text.replace(role, "")
    return " ".join(text.replace("~", "").split()).replace("``", "`").replace("|", "\\|")


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.rstrip(), *(section(title, model) for title, model in TABLES)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
