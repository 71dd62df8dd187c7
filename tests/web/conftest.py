"""The bot of a micro run, opened once for each file of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.rlhf.bot.models import NAMES, Bot
from stages.rlhf.web.batcher import Batcher
from tests.bot_fixtures import opened, write_run


@pytest.fixture(scope="module")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """data/ of a micro run, in the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        yield write_run(tmp_path_factory.mktemp("run"), patch)


@pytest.fixture(scope="module")
def bot(micro_run: Path) -> Bot:
    return opened(micro_run)


@pytest.fixture
def batcher(bot: Bot) -> Iterator[Batcher]:
    """Started."""
    found = Batcher(bot, NAMES)
    yield found
    found.close()
