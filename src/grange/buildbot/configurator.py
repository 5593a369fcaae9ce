"""Puts a gate before builders that others have configured, and a release after them."""

from copy import copy
from typing import Any

from buildbot import config
from buildbot.configurators import ConfiguratorBase
from buildbot.process.buildstep import get_factory_from_step_or_factory
from buildbot.process.factory import BuildFactory
from twisted.python import log

from grange.buildbot import policy
from grange.buildbot.keeper import CapacityKeeper
from grange.buildbot.policy import Settings
from grange.buildbot.steps import Gate, Release
from grange.errors import OperatorError


class CapacityConfigurator(ConfiguratorBase):
    """List it in `c["configurators"]` after what makes the builders, such as buildbot-nix's.

    It takes the fields of `grange.buildbot.policy.Settings` by name, and `name`, the service's,
    which must differ where there are several of them.
    """

    def __init__(self, *, name: str = policy.KEEPER, **settings: Any) -> None:
        super().__init__()
        self.name = name
        try:
            self.settings = Settings.of(settings)
        except OperatorError as error:
            config.error(f"CapacityConfigurator: {error}")
            self.settings = Settings()

    def configure(self, config_dict: dict[str, Any]) -> None:
        """As often as one likes: what has a gate already gets no second one."""
        super().configure(config_dict)
        services = config_dict.setdefault("services", [])
        if not any(service.name == self.name for service in services):
            services.append(CapacityKeeper(self.settings, name=self.name))
        gated = 0
        for builder in self.builders:
            said = builder if isinstance(builder, dict) else vars(builder)
            if policy.project_of(said["name"], self.settings.suffixes) is not None:
                said["factory"] = surrounded(said["factory"], self.name)
                gated += 1
        log.msg(f"grange: {gated} builders wait for capacity of {self.settings.url}")


def surrounded(factory: BuildFactory, keeper: str) -> BuildFactory:
    """With the gate first and the release last; itself, where it has a gate.

    A copy, since builders that do not wait may share it.
    """
    if any(getattr(step, "step_class", None) is Gate for step in factory.steps):
        return factory
    around = copy(factory)
    around.steps = [
        get_factory_from_step_or_factory(Gate(keeper)),
        *factory.steps,
        get_factory_from_step_or_factory(Release(keeper)),
    ]
    return around
