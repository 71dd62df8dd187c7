"""Section `limits`: what a policy must keep to, whatever it gains."""

from typing import Annotated

from pydantic import Field

from stages.rlhf.config.base import Section, Share


class Limits(Section):
    """Against SFT, or the references; for the choice of an update and for evaluate's gates."""

    eos_slack: Share
    repetition_slack: Share
    length_band: Annotated[float, Field(gt=0)]
