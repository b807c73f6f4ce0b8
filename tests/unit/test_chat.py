"""The history of a chat."""

from proxy.cli.chat import Conversation


def test_the_whole_conversation_is_sent() -> None:
    conversation = Conversation(system="Be brief.")
    conversation.add_turn("one?", "One.")
    assert conversation.messages("two?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "two?"},
    ]


def test_surrogate_pairs_are_joined_and_lone_surrogates_replaced() -> None:
    conversation = Conversation()
    conversation.add_turn("a\udcff", "b\ud83d" + "\ude00")
    assert [turn["content"] for turn in conversation.messages("c\ud83d")] == [
        "a\ufffd",
        "b\U0001f600",
        "c\ufffd",
    ]


def test_the_system_message_is_optional() -> None:
    assert Conversation().messages("hello") == [{"role": "user", "content": "hello"}]
