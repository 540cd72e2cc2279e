"""docs/experts.md says what the specs say."""

from tests.stages.experts_table import BEGIN, DOC, END, own_experts, table


def test_the_page_holds_the_table_of_the_specs():
    written = DOC.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == table(), "write it again: python -m tests.stages.experts_table"


def test_every_expert_with_weights_of_its_own_is_explained():
    text = DOC.read_text()
    assert not [name for name in own_experts() if f"| {name} |" not in text]
