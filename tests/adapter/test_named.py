"""What a list of target modules names is what PEFT says it names, however long the list is."""

import json

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.adapter.peft_config import PeftConfig

PATHS = st.lists(st.sampled_from(["a", "b", "aa", "0", ""]), min_size=1, max_size=4).map(".".join)


def config(**settings: object) -> PeftConfig:
    return PeftConfig.parse(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1} | settings).encode())


@given(st.lists(PATHS, max_size=4), st.lists(PATHS, max_size=2), PATHS)
def test_a_list_names_a_path_by_the_whole_of_it_or_its_end(targets: list[str], excluded: list[str], path: str) -> None:
    def named(names: list[str]) -> bool:
        return any(path == name or path.endswith(f".{name}") for name in names)

    found = config(target_modules=targets, exclude_modules=excluded, target_parameters=targets)
    assert found.selects(path) == (named(targets) and not named(excluded))
    assert found.selects_parameter(path) == named(targets)


def test_a_list_is_gone_through_once_and_not_for_each_path() -> None:
    """Two hundred paths of twenty thousand: by comparisons that would be millions, by look-ups it is a few for each path."""
    paths = [f"model.layers.{number}.down_proj" for number in range(20_000)]
    found = config(target_modules=paths)
    assert all(found.selects(path) for path in paths[::100])
    assert found._targeted is found._targeted
