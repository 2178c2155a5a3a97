"""Put linear atoms on a language model and train them with transformers' Trainer: `python examples/language_model.py`.

The model is a tiny Llama with random weights, its tokens are letters, so that this runs in seconds and fetches nothing.
With `AutoModelForCausalLM.from_pretrained(...)` and your tokenizer it is the same.
"""

import torch
from peft import PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import atomtune

torch.manual_seed(0)
shape = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
base = LlamaForCausalLM(shape)

letters = torch.tensor([ord(letter) for letter in "in the beginning was the word, and the word was there. " * 40])
data = [{"input_ids": piece, "labels": piece} for piece in letters.unfold(0, 64, 16)]

# A token uses 4 of 64 atoms in each of these layers.
config = atomtune.AtomConfig(target_modules=["v_proj", "down_proj"], num_atoms=64, density=1 / 16)
model = get_peft_model(base, config)
model.print_trainable_parameters()
options = TrainingArguments(
    "runs/example-llm", max_steps=60, learning_rate=3e-2, logging_steps=20, report_to="none", label_names=["labels"]
)
Trainer(model=model, args=options, train_dataset=data).train()
model.save_pretrained("runs/example-llm/adapter")

base = model.unload()  # the base as it was
again = PeftModel.from_pretrained(base, "runs/example-llm/adapter")
with atomtune.trace(again) as watched, torch.no_grad():
    loss = again(**{key: value[None] for key, value in data[0].items()}).loss
print(f"loss {loss:.2f}, {watched.active_per_token:.0f} atoms a token, {watched.alive} alive")
