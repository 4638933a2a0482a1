"""ToolWorld, the embedded world: four small stateful APIs, scenarios without end, gold that always verifies."""

from rcgrpo.environments.toolworld.config import ToolWorldConfig
from rcgrpo.environments.toolworld.suite import ToolWorldSuite
from rcgrpo.environments.toolworld.world import ToolWorld

__all__ = ["ToolWorld", "ToolWorldConfig", "ToolWorldSuite"]
