"""Licences of families of models: what they ask of those who distribute an adapter, or train a model on outputs.

    meta-llama/Llama-3.1-8B-Instruct       llama3.1      a name that begins with "Llama", "Built with Llama", ...
    Qwen/Qwen3-8B                          apache-2.0    a copy of the licence
    someone/Qwen3-8B-for-us                none          its maker may have chosen another one

The sentences are short forms, for cards: the licence itself holds. What a family passes on to all models that derive
from it (Llama, Gemma) is recognised in any name; other licences in names of the maker's own repositories only.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelLicence:
    """A licence of models.

    Args:
        hub_id (`str`): Its identifier on the Hub.
        name (`str`): What it is called.
        adapter (`str`): What who distributes an adapter has to do: the end of a sentence that begins with "you must".
        outputs (`str`, *optional*): What holds for outputs, in a sentence; `None` if the licence says nothing of them.
        name_prefix (`str`, *optional*): With what the name of an adapter must begin.
        hub_name (`str`, *optional*): The `license_name` on the Hub, where the identifier is `other`.
    """

    hub_id: str
    name: str
    adapter: str
    outputs: str | None = None
    name_prefix: str | None = None
    hub_name: str | None = None


def licence_of(model: str) -> ModelLicence | None:
    """The licence of a model, by its public name; `None` if the name is of no family that is known here.

    Args:
        model (`str`): A Hub id, the last parts of a path (`llama-3.1-8b/checkpoint-9`), or what
            [`~public_name.model_label`] returned.
    """
    local = _LOCAL_MODEL.match(model)
    parts = (local[1] if local else model).split("/")
    for owner, part in zip([None, *parts], parts, strict=False):
        for maker, pattern, licence in _FAMILIES:
            if maker is None:
                found = pattern.search(part)
            else:
                found = pattern.fullmatch(part) if owner in (None, maker) else None
            if found:
                return licence
    return None


def _llama(version: str) -> ModelLicence:
    return ModelLicence(
        f"llama{version}",
        f"the Llama {version} Community License",
        'give it a name that begins with "Llama", show "Built with Llama", include a copy of the licence with its '
        "notice, and follow the acceptable use policy",
        "If you train a model on these outputs and distribute it (an adapter too), you must give it a name that "
        'begins with "Llama", show "Built with Llama", include a copy of the licence with its notice, and follow the '
        "acceptable use policy.",
        name_prefix="Llama",
    )


_LLAMA_3 = ModelLicence(
    "llama3",
    "the Meta Llama 3 Community License",
    'give it a name that begins with "Llama 3", show "Built with Meta Llama 3", include a copy of the licence with '
    "its notice, and follow the acceptable use policy",
    "These outputs may not be used to improve large language models other than Meta Llama 3 and what derives from it.",
    # With a hyphen, since names on the Hub have no blanks.
    name_prefix="Llama-3",
)
_GEMMA = ModelLicence(
    "gemma",
    "the Gemma Terms of Use",
    "pass on the use restrictions of the terms (the prohibited use policy) in an agreement, include a copy of the "
    "terms, say which files you modified, and add the notice that the terms ask for",
    "Outputs are free, but a model that is trained on them in order to perform like Gemma counts as its derivative, "
    "to which the terms and the prohibited use policy apply.",
)
_BUILT_WITH_QWEN = (
    "If you train a model on these outputs and distribute it (an adapter too), you must show "
    '"Built with Qwen" or "Improved using Qwen".'
)
_QWEN = ModelLicence(
    "other",
    "the Qwen License Agreement",
    'include a copy of the agreement and its notice, say which files you modified, and show "Built with Qwen" or '
    '"Improved using Qwen"',
    _BUILT_WITH_QWEN,
    hub_name="qwen",
)
_QWEN_RESEARCH = ModelLicence(
    "other",
    "the Qwen Research License Agreement",
    "keep to purposes that are not commercial, include a copy of the agreement and its notice, say which files you "
    'modified, and show "Built with Qwen" or "Improved using Qwen"',
    _BUILT_WITH_QWEN,
    hub_name="qwen-research",
)
_DEEPSEEK = ModelLicence(
    "other",
    "the DeepSeek License Agreement",
    "pass on its use-based restrictions, include a copy of the licence, and say which files you modified",
    "A model that is trained on these outputs in order to perform like DeepSeek's counts as its derivative, to which "
    "the use-based restrictions of the licence apply.",
    hub_name="deepseek",
)
_APACHE = ModelLicence(
    "apache-2.0",
    "the Apache License 2.0",
    "include a copy of the licence and the notices of the model, and say which files you modified",
)
_MIT = ModelLicence("mit", "the MIT License", "include its copyright and permission notice")

_LOCAL_MODEL = re.compile(r"local model (.+) \(weights ")

# Further parts of names of the makers' own repositories: stages of training, dates, and other precisions.
_SUFFIX = r"(?:-(?:Base|Instruct|Thinking|PT|it|1M|\d{4}|FP8|AWQ|GPTQ-Int[48]|GGUF))*"


def _family(maker: str | None, pattern: str, licence: ModelLicence) -> tuple[str | None, re.Pattern, ModelLicence]:
    return maker, re.compile(pattern, re.IGNORECASE), licence


# Owner of the repositories, or `None` for licences that all derivatives inherit; what their names look like; licence.
_FAMILIES = (
    *(_family(None, rf"(?<![a-z])llama[-_ ]?3[._]{minor}(?!\d)", _llama(f"3.{minor}")) for minor in (1, 2, 3)),
    _family(None, r"(?<![a-z])llama[-_ ]?3(?![\d._b])", _LLAMA_3),
    _family(None, r"(?<![a-z])llama[-_ ]?4(?![\d._b])", _llama("4")),
    # Gemma 1 to 3. Gemma 4 has other terms, and so have MedGemma and its like.
    _family(None, r"(?<![a-z])(?:function)?gemma[-_]?(?:(?:1\.1|2|3n?)[-_])?e?\d+[bm](?![a-z\d])", _GEMMA),
    _family("Qwen", rf"Qwen2\.5-(?:Coder-|Math-)?(?:0\.5|1\.5|7|14|32)B{_SUFFIX}", _APACHE),
    _family("Qwen", rf"Qwen2\.5-(?:Coder-)?3B{_SUFFIX}", _QWEN_RESEARCH),
    _family("Qwen", rf"Qwen2\.5-(?:Math-)?72B{_SUFFIX}", _QWEN),
    _family("Qwen", rf"Qwen3-(?:Coder-)?[\d.]+B(?:-A\d+B)?{_SUFFIX}", _APACHE),
    _family("mistralai", r"Mistral-Nemo-(?:Base|Instruct)-2407", _APACHE),
    # Mistral-Small-Instruct-2409, of 22 B, has a research licence.
    _family("mistralai", r"Mistral-Small-(?:3\.[12]-)?24B-(?:Base|Instruct)-25\d\d", _APACHE),
    _family("mistralai", r"Mistral-7B-(?:Instruct-)?v0\.[123]", _APACHE),
    _family("openai", r"gpt-oss-(?:20b|120b)", _APACHE),
    _family("HuggingFaceTB", r"SmolLM2-(?:135M|360M|1\.7B)(?:-Instruct)?|SmolLM3-3B(?:-Base)?", _APACHE),
    _family("ibm-granite", r"granite-[34]\.\d-[\w.]+(?:-[\w.]+)*", _APACHE),
    _family("microsoft", r"phi-(?:3|3\.5|4)(?:-[\w.]+)*", _MIT),
    # Distilled models derive from Llama and Qwen.
    _family("deepseek-ai", r"DeepSeek-R1(?:-Zero|-0528)?|DeepSeek-V3-0324|DeepSeek-V3\.[12](?:-[a-z]+)*", _MIT),
    _family("deepseek-ai", r"DeepSeek-V3(?:-Base)?", _DEEPSEEK),
)
