"""A tiny random Llama checkpoint with a tokenizer of its own, and a small task: what a test renders, tunes or generates with in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fiat_ray.task import Exemplar, Row, Task

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TRAINED_ON = (
    "question: which town lies at the river? title: rivers context: The town lies at the river, where two roads meet.",
    "reasoning: The context names it.",
    "predict: explain: Answer: yes no instructions answer the question with words of the context passage proposed",
    "নদীর পাশে কোন শহর আছে? हिन्दी में एक प्रश्न κάτι στα ελληνικά город у реки 川のそばの町",
    "\ufffd \ufffd",  # one token, as in tokenizers that people use
)


def write(
    folder: Path,
    seed: int = 0,
    chat: bool = True,
    bos: bool = False,
    dtype: str = "float32",
    template_bos: bool | None = None,
    date: bool = False,
) -> Path:
    """Write config, weights and tokenizer into ``folder``; returns it. All tokenizers have the same vocabulary.

    ``chat=False``: a pretrained twin, without chat template, that ends texts with ``<|endoftext|>``. ``bos``: the tokenizer itself starts texts with
    a BOS. ``template_bos``: the chat template writes one (default: where the tokenizer has one, as Llama 3 does it). ``date``: the template prints
    today's date where it is given no other.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(chat, bos)
    if chat:
        today = (
            "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y %H:%M:%S.%f') %}{% endif %}Today is {{ date_string }}.\n"
        )
        opening = "{{ bos_token }}" if (bos if template_bos is None else template_bos) else ""
        tokenizer.chat_template = opening + (today if date else "") + CHATML
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that the engine's kernels for a CPU have
        max_position_embeddings=2048,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|bos|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.save_pretrained(folder)
    return folder


def _tokenizer(chat: bool, bos: bool) -> Any:
    """Byte-level BPE, trained here: any text is made of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )


def row(number: int, split: str = "train", language: str = "bn", targets: tuple[str, ...] = ("yes",), **fields: str) -> Row:
    fields = {"question": f"which town lies at river {number}?", "context": f"The town {number} lies at the river."} | fields
    return Row(f"row-{language}-{split}-{number}", split, language, fields, targets, f"group-{number}", f"example-{number}")


def task(rows: tuple[Row, ...] = (), labels: tuple[str, ...] = (), exemplars_a_language: int = 3) -> Task:
    """Questions about towns: rows and exemplars in two languages."""
    exemplars = [
        Exemplar(
            language,
            {"question": f"which town, {language} {n}?", "context": f"Town {n} is named. It is old."},
            f"The context names it {n} times.",
            "yes",
        )
        for language in ("bn", "hi")
        for n in range(exemplars_a_language)
    ]
    return Task(
        name="towns",
        input="question: {question} context: {context}",
        cut="context",
        metric="accuracy" if labels else "f1",
        labels=labels,
        i_beta="Reason about the question step by step, then end with a line Answer: and the answer.",
        i_tau="Answer the question with words of the context.",
        exemplars=tuple(exemplars),
        rows=rows or tuple(row(n, split, language) for split in ("train", "validation", "test") for language in ("bn", "hi") for n in range(3)),
    )
