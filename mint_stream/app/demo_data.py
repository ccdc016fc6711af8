"""The demo's data: household commands from Home Assistant's intents (Apache-2.0), each with the word that names its intent."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import home_assistant_intents
from hassil import Intents
from hassil.intents import SlotList, TextSlotList
from hassil.sample import sample_sentence

LABELS = {
    "HassStartTimer": "timer",
    "HassGetWeather": "weather",
    "HassSetVolume": "volume",
    "HassClimateSetTemperature": "heating",
    "HassShoppingListAddItem": "shopping",
    "HassLightSet": "light",
    "HassFanSetSpeed": "fan",
    "HassMediaPause": "music",
}
"""Eight intents and the word the model has to answer with."""

_AREAS = ("kitchen", "bedroom", "living room", "office", "hallway", "garage")
_NAMES = ("London", "Oslo", "lamp", "speaker")
_ITEMS = (
    *("milk", "bread", "apples", "coffee", "rice", "soap", "eggs", "butter", "flour", "sugar", "tea", "honey", "salt", "pasta", "cheese"),
    *("olive oil", "tomatoes", "carrots", "yoghurt", "lemons", "paper towels", "dish soap", "onions", "garlic", "bananas", "oats"),
)
_MINUTES = ("2", "5", "15")
_SLOTS = {
    "area": _AREAS,
    "floor": ("first", "second"),
    "name": _NAMES,
    "shopping_list_item": _ITEMS,
    "brightness": ("20", "50", "80"),
    "temperature": ("18", "20", "22"),
    "volume": ("10", "40", "70"),
    "timer_command": ("open the door",),
    "fan_speed": ("25", "50", "75"),
}
_PER_SENTENCE = 400
_STRIDE = 7
"""Neighbouring expansions of a template differ little: one in seven, and all where a template has few."""


@dataclass(frozen=True)
class Example:
    """One utterance and the word for its intent."""

    prompt: str
    label: str

    @property
    def command(self) -> str:
        """The utterance itself."""
        return self.prompt.splitlines()[1].removeprefix("Command: ")

    def line(self) -> str:
        """A line of a prompt/completion dataset."""
        return json.dumps({"prompt": self.prompt, "completion": f" {self.label}"})


def examples(per_label: int, seed: int) -> list[Example]:
    """Up to `per_label` different utterances of each label, shuffled; the same seed gives the same list."""
    chance = random.Random(seed)
    intents = Intents.from_dict(home_assistant_intents.get_intents("en") or {})
    found = [Example(_prompt(text), label) for name, label in LABELS.items() for text in _draw(intents, name, per_label, chance)]
    chance.shuffle(found)
    return found


def split(found: list[Example], heldout: int) -> tuple[list[Example], list[Example]]:
    """(training, held out): no utterance is in both."""
    return found[heldout:], found[:heldout]


def _draw(intents: Intents, name: str, count: int, chance: random.Random) -> list[str]:
    texts = sorted({text.strip() for text in _utterances(intents, name)})
    return chance.sample(texts, min(count, len(texts)))


def _utterances(intents: Intents, name: str) -> Iterator[str]:
    """A spread of what the intent's sentence templates can say."""
    lists = _lists(intents)
    for block in intents.intents[name].data:
        for sentence in block.sentences:
            texts = sample_sentence(
                sentence, lists, {**intents.expansion_rules, **block.expansion_rules}, language="en", expand_ranges=False
            )
            some = list(islice(texts, _PER_SENTENCE * _STRIDE))
            yield from (text for text in (some if len(some) < _PER_SENTENCE else some[::_STRIDE]) if "{" not in text)


def _lists(intents: Intents) -> dict[str, SlotList]:
    """What may stand in a template's braces: ours for what a household would name, the package's for the rest."""
    timers = {name: _MINUTES for name in intents.slot_lists if name.startswith("timer_") and name != "timer_command"}
    ours = {**_SLOTS, **timers}
    return {**intents.slot_lists, **{name: TextSlotList.from_strings(values, name=name) for name, values in ours.items()}}


def _prompt(utterance: str) -> str:
    return f"Topics: {', '.join(LABELS.values())}.\nCommand: {utterance}\nTopic:"
