"""How instances are reached: on a network of their own, or at the addresses that clouds gave."""

from grange.cloud.overlay.none import NoOverlay
from grange.cloud.overlay.tailscale import Tailscale, TailscaleSettings

__all__ = ["NoOverlay", "Tailscale", "TailscaleSettings"]
