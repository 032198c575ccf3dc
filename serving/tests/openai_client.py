"""The official OpenAI client against a gateway: chat, streams, embeddings, errors.

Reads OPENAI_BASE_URL, OPENAI_API_KEY, QUORATE_CHAT_MODEL and QUORATE_EMBEDDING_MODEL from the environment.
Plain asserts, no test framework; prints what failed and a last line `N passed, M failed`.
`cargo xtask test` runs it; by hand: `python serving/tests/openai_client.py` with `openai` installed.
"""

import asyncio
import json
import math
import os
import sys
import threading
import traceback
import urllib.error
import urllib.request

import openai

CHAT = os.environ["QUORATE_CHAT_MODEL"]
EMBEDDING = os.environ["QUORATE_EMBEDDING_MODEL"]
QUESTION = [{"role": "user", "content": "what is two plus three?"}]
# Retries would hide a refusal.
client = openai.OpenAI(max_retries=0, timeout=60)
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def refused(kind, code, param=None, **request):
    """The error of a chat request that must fail."""
    request = {"model": CHAT, "messages": QUESTION, **request}
    try:
        client.chat.completions.create(**request)
    except kind as error:
        assert error.code == code, f"{error.code} is not {code}"
        assert error.param == param, f"{error.param} is not {param}"
        assert error.message
        return error
    raise AssertionError(f"{request} was accepted")


@test
def models_are_listed():
    names = [model.id for model in client.models.list()]
    assert CHAT in names and EMBEDDING in names, names
    assert client.models.retrieve(CHAT).id == CHAT


@test
def a_chat_is_answered():
    answer = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=16, temperature=0, user="me")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == CHAT
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer._request_id


@test
def a_conversation_goes_on():
    first = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=8, temperature=0)
    messages = [*QUESTION, first.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "and?"}]}]
    second = client.chat.completions.create(model=CHAT, messages=messages, max_completion_tokens=8)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


@test
def a_stream_says_what_a_whole_answer_says():
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**request)
    stream = client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@test
def a_stream_without_options_has_no_usage():
    with client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=4, stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


@test
def the_streaming_helper_accumulates():
    with client.chat.completions.stream(model=CHAT, messages=QUESTION, max_tokens=8) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.content


@test
def a_seed_repeats_an_answer():
    def draw(seed):
        request = {"model": CHAT, "messages": QUESTION, "max_tokens": 16, "temperature": 1.2, "top_p": 0.95}
        return client.chat.completions.create(**request, seed=seed).choices[0].message.content

    assert draw(7) == draw(7)


@test
def completions_count_and_stop():
    whole = client.completions.create(model=CHAT, prompt="one plus one is", max_tokens=12, temperature=0)
    assert whole.object == "text_completion" and whole.choices[0].text
    short = client.completions.create(model=CHAT, prompt="one plus one is", max_tokens=1, temperature=0)
    assert short.usage.completion_tokens == 1
    text = whole.choices[0].text
    if len(text) > 1:
        stop = text[len(text) // 2]
        cut = client.completions.create(
            model=CHAT, prompt="one plus one is", max_tokens=12, temperature=0, stop=[stop])
        assert cut.choices[0].text == text[: text.index(stop)] and cut.choices[0].finish_reason == "stop"
    stream = client.completions.create(
        model=CHAT, prompt="one plus one is", max_tokens=12, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text


@test
def a_request_may_ask_for_several_answers():
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 8, "n": 3, "seed": 7, "temperature": 1.2}
    whole = client.chat.completions.create(**request)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    prompts = ["one plus one is", "two plus two is"]
    both = client.completions.create(model=CHAT, prompt=prompts, max_tokens=4, temperature=0, echo=True)
    for prompt, choice in zip(prompts, both.choices, strict=True):
        alone = client.completions.create(model=CHAT, prompt=prompt, max_tokens=4, temperature=0)
        assert choice.text == prompt + alone.choices[0].text


@test
def the_likely_tokens_can_be_narrowed():
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 8}
    greedy = client.chat.completions.create(**request, temperature=0).choices[0].message.content
    for narrow in [{"top_k": 1}, {"min_p": 1}]:
        answer = client.chat.completions.create(**request, temperature=2, seed=3, extra_body=narrow)
        assert answer.choices[0].message.content == greedy, narrow
    penalties = {"frequency_penalty": 2, "presence_penalty": 2, "logit_bias": {"40": -100}}
    assert client.chat.completions.create(**request, **penalties).choices[0].finish_reason


@test
def log_probabilities_belong_to_the_text():
    request = {"model": CHAT, "messages": QUESTION, "max_tokens": 8, "temperature": 0, "logprobs": True}
    choice = client.chat.completions.create(**request, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
    request = {"model": CHAT, "prompt": "one plus one is", "max_tokens": 4, "temperature": 0, "logprobs": 2}
    logprobs = client.completions.create(**request).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) > 0


@test
def special_tokens_in_a_message_are_text():
    def prompt_tokens(content):
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model=CHAT, messages=messages, max_tokens=1)
        return answer.usage.prompt_tokens

    # As one token it would be shorter than its letters.
    assert prompt_tokens("<|end|>") > prompt_tokens("a") + 2


@test
def embeddings_are_vectors_of_length_one():
    texts = ["a quorum of members approves", "enough members say yes", "the weather is cold today"]
    answer = client.embeddings.create(model=EMBEDDING, input=texts)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    vectors = [item.embedding for item in answer.data]
    assert len({len(vector) for vector in vectors}) == 1
    for vector in vectors:
        assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-3)


@test
def an_embedding_is_the_same_in_both_encodings():
    # The client asks for base64 unless told otherwise, and decodes it.
    base64 = client.embeddings.create(model=EMBEDDING, input="a text").data[0].embedding
    floats = client.embeddings.create(model=EMBEDDING, input="a text", encoding_format="float").data[0].embedding
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(base64, floats, strict=True))


@test
def embeddings_refuse_what_they_cannot_do():
    for request, param in [({"dimensions": 8}, "dimensions"), ({"input": []}, "input")]:
        try:
            client.embeddings.create(**{"model": EMBEDDING, "input": "a", **request})
        except openai.BadRequestError as error:
            assert error.param == param, error.param
        else:
            raise AssertionError(f"{request} was accepted")


@test
def an_answer_is_held_to_a_schema():
    number = {"type": "integer", "minimum": 0, "maximum": 99}
    schema = {
        "type": "object",
        "properties": {"sum": number, "sure": {"type": "boolean"}},
        "required": ["sum", "sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    for temperature in (0, 1):
        request = {"model": CHAT, "messages": QUESTION, "response_format": form}
        answer = client.chat.completions.create(**request, temperature=temperature, seed=1)
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == {"sum", "sure"} and 0 <= value["sum"] <= 99, value
        assert isinstance(value["sure"], bool), value


@test
def unknown_and_unserved_fields_are_named():
    refused(openai.BadRequestError, "unknown_parameter", "typical_p", extra_body={"typical_p": 0.5})
    refused(openai.BadRequestError, "invalid_value", "n", n=129)
    refused(openai.BadRequestError, "invalid_value", "top_logprobs", top_logprobs=2)
    refused(openai.BadRequestError, "invalid_value", "response_format.type", response_format={"type": "yaml"})
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(openai.BadRequestError, "unsupported_parameter", "tools", tools=[tool])
    refused(openai.BadRequestError, "invalid_value", "temperature", temperature=3)


@test
def the_context_is_a_limit_that_is_told():
    messages = [{"role": "user", "content": "one two three " * 20_000}]
    error = refused(openai.BadRequestError, "context_length_exceeded", "messages", messages=messages)
    assert any(character.isdigit() for character in error.message)


@test
def a_model_that_does_not_exist_is_not_found():
    refused(openai.NotFoundError, "model_not_found", "model", model="nobody")
    refused(openai.BadRequestError, "operation_unsupported", "model", model=EMBEDDING)


@test
def a_wrong_key_is_refused():
    stranger = openai.OpenAI(api_key="qk-wrong", max_retries=0)
    try:
        stranger.models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key" and "qk-wrong" not in error.message
    else:
        raise AssertionError("a wrong key was accepted")


def post(body):
    """A raw chat request; returns status and body."""
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{client.base_url}chat/completions", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@test
def bytes_that_are_no_request_are_refused():
    for body in [b"", b"{", b"[]", b'{"model": "\xff"}', b'{"model": "a", "model": "b"}']:
        status, answer = post(body)
        assert status == 400, (body, status)
        assert json.loads(answer)["error"]["code"] == "request_invalid", answer


@test
def a_body_of_100_mb_is_refused():
    try:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "x" * 100_000_000}])
    except openai.APIStatusError as error:
        assert error.status_code == 413 and error.code == "request_too_large", error
    else:
        raise AssertionError("100 MB were accepted")


@test
def a_stream_may_be_left():
    for _ in range(4):
        stream = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=64, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=2).choices


@test
def many_ask_at_once():
    answers = []

    def ask():
        answer = client.chat.completions.create(model=CHAT, messages=QUESTION, max_tokens=16, temperature=0)
        answers.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # What else is in the batch changes no answer.
    assert len(answers) == 16 and len(set(answers)) == 1, set(answers)


@test
def the_asynchronous_client_works():
    async def ask():
        async with openai.AsyncOpenAI(max_retries=0) as asynchronous:
            stream = await asynchronous.chat.completions.create(
                model=CHAT, messages=QUESTION, max_tokens=8, stream=True)
            return [chunk async for chunk in stream]

    assert asyncio.run(ask())


def main():
    failed = 0
    for function in TESTS:
        try:
            function()
        except Exception:  # any failure is a failed test, and the next one runs
            failed += 1
            print(f"FAILED {function.__name__}")
            traceback.print_exc(file=sys.stdout)
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
