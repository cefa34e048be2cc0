#!/usr/bin/env python3
"""Records what PyTorch programs ask their caching allocator for while they run on a GPU.

    pip install torch torchvision transformers diffusers timm peft torchaudio
    python3 bench/record_traces.py --list
    python3 bench/record_traces.py recorded/                    # every program, one NAME.csv.gz each
    python3 bench/record_traces.py recorded/ bert flux          # these two
    python3 bench/replays.py recorded/*.csv.gz

Each program runs in a process of its own: published model code with random weights, the shapes of its requests drawn from
--seed. What is recorded is PyTorch's own memory history, so the workspaces of its libraries are in it, which
bench/fake_traces.py cannot see. Needs a GPU of 32 GiB.
"""
import argparse, functools, gzip, pathlib, random, subprocess, sys

PROGRAMS = {}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


def inference(function):
    """A program that needs no gradients."""

    @functools.wraps(function)
    def run(draw):
        with torch.inference_mode():
            return function(draw)

    return program(run)


def on_gpu(make, dtype=None):
    """A model made on the GPU, its parameters in `dtype`."""
    torch.set_default_dtype(dtype or torch.float32)
    try:
        with torch.device("cuda"):
            return make()
    finally:
        torch.set_default_dtype(torch.float32)


def randn(*shape, dtype=None):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def tokens(batch, length, vocabulary=30000):
    return torch.randint(0, vocabulary, (batch, length), device="cuda")


def train(model, batches, loss, dtype=None, fused=False):
    """Steps of AdamW, under autocast to `dtype` if there is one; returns what stays live."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=fused)
    for batch in batches:
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del batch, value
    return model, optimizer


def classify(model, images):
    return torch.nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long, device="cuda"))


def images(draw, steps, batches, sizes):
    for _ in range(steps):
        size = draw.choice(sizes)
        yield randn(draw.choice(batches), 3, size, size)


def language(model, ids):
    return model(input_ids=ids, labels=ids).loss


def texts(draw, steps, batches, longest):
    for _ in range(steps):
        yield tokens(draw.choice(batches), draw.randrange(longest // 8, longest))


def sd15_unet(dtype=None):
    """The UNet of Stable Diffusion 1.5."""
    from diffusers import UNet2DConditionModel

    channels = (320, 640, 1280, 1280)
    return on_gpu(lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, block_out_channels=channels), dtype)


def autoencoder(latent_channels, dtype=None):
    """The encoder and decoder of Stable Diffusion's versions, which differ in their latent channels."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    channels = (128, 256, 512, 512)
    return on_gpu(
        lambda: AutoencoderKL(**blocks, block_out_channels=channels, layers_per_block=2, latent_channels=latent_channels), dtype
    )


# Training.


@program
def efficientnet(draw):
    """timm EfficientNet-B3, mixed precision, channels last, batches of 48 to 96"""
    import timm

    model = on_gpu(lambda: timm.create_model("efficientnet_b3")).to(memory_format=torch.channels_last)
    return train(model, images(draw, 12, [48, 64, 96], [256, 288, 320]), classify, torch.float16)


@program
def vit_amp(draw):
    """timm ViT-B/16, mixed precision, batches of 64 to 160"""
    import timm

    model = on_gpu(lambda: timm.create_model("vit_base_patch16_224"))
    return train(model, images(draw, 12, [64, 96, 128, 160], [224]), classify, torch.bfloat16)


@program
def swin_amp(draw):
    """timm Swin-S, mixed precision, a fused optimizer"""
    import timm

    model = on_gpu(lambda: timm.create_model("swin_small_patch4_window7_224"))
    return train(model, images(draw, 10, [48, 64, 96], [224]), classify, torch.bfloat16, fused=True)


@program
def video(draw):
    """torchvision R(2+1)D-18 on clips of 8 to 24 frames"""
    from torchvision.models.video import r2plus1d_18

    clips = (randn(draw.choice([4, 8]), 3, draw.choice([8, 16, 24]), 112, 112) for _ in range(12))
    return train(on_gpu(lambda: r2plus1d_18(num_classes=400)), clips, classify, torch.float16)


@program
def deeplab(draw):
    """torchvision DeepLabV3-ResNet50 on crops of several sizes"""
    from torchvision.models.segmentation import deeplabv3_resnet50

    def loss(model, x):
        labels = torch.zeros(len(x), *x.shape[2:], dtype=torch.long, device="cuda")
        return torch.nn.functional.cross_entropy(model(x)["out"], labels)

    model = on_gpu(lambda: deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21))
    return train(model, images(draw, 12, [6, 8], [384, 448, 512]), loss)


@program
def retinanet(draw):
    """torchvision RetinaNet on pairs of images of several sizes"""
    from torchvision.models.detection import retinanet_resnet50_fpn

    def loss(model, sizes):
        pictures = [randn(3, *size) for size in sizes]
        box = {
            "boxes": torch.tensor([[10.0, 10.0, 200.0, 300.0]], device="cuda"),
            "labels": torch.ones(1, dtype=torch.long, device="cuda"),
        }
        targets = [box] * len(sizes)
        return sum(model(pictures, targets).values())

    model = on_gpu(lambda: retinanet_resnet50_fpn(weights=None, weights_backbone=None))
    side = lambda: draw.randrange(480, 1280)
    return train(model, [[(side(), side()) for _ in range(2)] for _ in range(12)], loss)


@program
def bert(draw):
    """transformers BERT-large, fine-tuning, padded batches of 16 and 32"""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    return train(on_gpu(lambda: BertForMaskedLM(config)), texts(draw, 14, [16, 32], 512), language, torch.bfloat16)


@program
def gpt2(draw):
    """transformers GPT-2 medium, mixed precision, accumulating two batches"""
    from transformers import GPT2Config, GPT2LMHeadModel

    def twice(model, pair):
        first, second = pair
        (language(model, first) / 2).backward()
        return language(model, second) / 2

    model = on_gpu(lambda: GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16)))
    pairs = ((tokens(8, n), tokens(8, n)) for n in (draw.randrange(256, 1024) for _ in range(10)))
    return train(model, pairs, twice, torch.bfloat16)


@program
def qwen_lora(draw):
    """transformers Qwen2 of 1.5 B parameters with adapters of peft, checkpointed"""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936
    )
    model = on_gpu(lambda: Qwen2ForCausalLM(config), torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, target_modules=adapted))
    return train(model, texts(draw, 10, [1, 2, 4], 2048), language)


@program
def t5(draw):
    """transformers T5-base, training, lengths of 64 to 512"""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0)
    return train(on_gpu(lambda: T5ForConditionalGeneration(config)), texts(draw, 12, [8, 16], 512), language, torch.bfloat16)


@program
def speech(draw):
    """torchaudio Conformer-large, mixed precision, utterances of 100 to 400 frames"""
    from torchaudio.models import Conformer

    def loss(model, sound):
        lengths = torch.full((len(sound),), sound.shape[1], device="cuda")
        return model(sound, lengths)[0].float().square().mean()

    model = on_gpu(lambda: Conformer(512, 8, 2048, 17, 31))
    sounds = (randn(draw.choice([8, 16]), draw.randrange(100, 400), 512) for _ in range(12))
    return train(model, sounds, loss, torch.bfloat16)


@program
def sd15_train(draw):
    """diffusers Stable Diffusion 1.5 UNet, mixed precision, 512 and 640 pixels"""
    def loss(model, latents):
        steps = torch.randint(0, 1000, (len(latents),), device="cuda")
        return model(latents, steps, encoder_hidden_states=randn(len(latents), 77, 768)).sample.float().square().mean()

    model = sd15_unet()
    latents = (randn(draw.choice([1, 2]), 4, side, side) for side in (draw.choice([64, 80]) for _ in range(10)))
    return train(model, latents, loss, torch.float16)


# Inference.


@inference
def sd15(draw):
    """diffusers Stable Diffusion 1.5, text encoder, UNet and decoder in half precision, six images of 512 to 768 pixels"""
    from transformers import CLIPTextConfig, CLIPTextModel

    half = torch.float16
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    text = on_gpu(lambda: CLIPTextModel(config), half)
    unet = sd15_unet(half)
    vae = autoencoder(4, half)
    for _ in range(6):
        side = draw.choice([512, 640, 768]) // 8
        words, latents = text(tokens(2, 77, 49000)).last_hidden_state, randn(1, 4, side, side, dtype=half)
        for step in range(4):
            noise, guided = unet(torch.cat([latents, latents]), 900 - step, encoder_hidden_states=words).sample.chunk(2)
            latents = latents + 0.01 * (noise + 7 * (guided - noise))
        image = vae.decode(latents).sample.cpu()
        del words, latents, noise, guided, image
    return text, unet, vae


@inference
def flux(draw):
    """diffusers' Flux transformer with fewer blocks, images of 768 to 1280 pixels"""
    from diffusers import FluxTransformer2DModel

    half = torch.bfloat16
    model = on_gpu(lambda: FluxTransformer2DModel(num_layers=4, num_single_layers=10, guidance_embeds=True), half)
    for _ in range(5):
        count = (draw.choice([768, 1024, 1280]) // 16) ** 2
        latents = randn(1, count, 64, dtype=half)
        words, pooled = randn(1, 512, 4096, dtype=half), randn(1, 768, dtype=half)
        places = [torch.zeros(n, 3, device="cuda", dtype=half) for n in (count, 512)]
        one = lambda value: torch.tensor([value], device="cuda", dtype=half)
        for step in range(4):
            out = model(
                hidden_states=latents, encoder_hidden_states=words, pooled_projections=pooled, timestep=one(1 - step / 4),
                img_ids=places[0], txt_ids=places[1], guidance=one(3.5),
            ).sample
            latents = latents - 0.25 * out
            del out
        del latents, words, pooled, places
    return model


@inference
def sd3(draw):
    """diffusers' Stable Diffusion 3 transformer and decoder, images of 512 to 1024 pixels"""
    from diffusers import SD3Transformer2DModel

    half = torch.float16
    config = {
        "sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
        "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    }
    model = on_gpu(lambda: SD3Transformer2DModel(**config), half)
    vae = autoencoder(16, half)
    for _ in range(5):
        side = draw.choice([512, 768, 1024]) // 8
        latents = randn(1, 16, side, side, dtype=half)
        words, pooled = randn(2, 333, 4096, dtype=half), randn(2, 2048, dtype=half)
        for step in range(4):
            out = model(
                hidden_states=torch.cat([latents, latents]), encoder_hidden_states=words, pooled_projections=pooled,
                timestep=torch.full((2,), 900.0 - step, device="cuda"),
            ).sample
            noise, guided = out.chunk(2)
            latents = latents + 0.01 * (noise + 7 * (guided - noise))
            del out, noise, guided
        image = vae.decode(latents).sample.cpu()
        del latents, words, pooled, image
    return model, vae


@inference
def upscale(draw):
    """diffusers' decoder alone, in single precision, pictures of 512 to 1024 pixels, encoded and decoded"""
    vae = autoencoder(4)
    for _ in range(8):
        picture = randn(1, 3, draw.choice([512, 640, 768, 1024]), draw.choice([512, 640, 768, 1024]))
        out = vae.decode(vae.encode(picture).latent_dist.mean).sample.cpu()
        del picture, out
    return vae


@inference
def generate(draw):
    """transformers Llama of 3 B parameters, `generate`, prompts of 64 to 2000 tokens"""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, max_position_embeddings=8192,
    )
    model = on_gpu(lambda: LlamaForCausalLM(config), torch.bfloat16).eval()
    for _ in range(14):
        prompt = tokens(draw.choice([1, 2, 4]), draw.randrange(64, 2000))
        out = model.generate(prompt, max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0)
        del out
    return model


@inference
def mistral_batch(draw):
    """transformers Mistral-shaped model of 1.3 B parameters scoring batches of many lengths"""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(hidden_size=2048, intermediate_size=7168, num_hidden_layers=20, num_attention_heads=16, num_key_value_heads=8)
    model = on_gpu(lambda: MistralForCausalLM(config), torch.float16).eval()
    for _ in range(30):
        scores = model(tokens(draw.choice([1, 2, 4, 8]), draw.randrange(100, 3000))).logits.argmax(-1).cpu()
        del scores
    return model


@inference
def t5_generate(draw):
    """transformers T5-large, `generate` with four beams"""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16, decoder_start_token_id=0)
    model = on_gpu(lambda: T5ForConditionalGeneration(config), torch.bfloat16).eval()
    for _ in range(8):
        out = model.generate(tokens(draw.choice([4, 8, 16]), draw.randrange(64, 800)), num_beams=4, max_new_tokens=40)
        del out
    return model


@inference
def embed(draw):
    """transformers BERT-base embedding batches of 64 texts of 16 to 512 tokens"""
    from transformers import BertConfig, BertModel

    model = on_gpu(lambda: BertModel(BertConfig()), torch.float16).eval()
    for _ in range(60):
        vectors = model(tokens(64, draw.randrange(16, 512))).last_hidden_state.mean(1).cpu()
        del vectors
    return model


@inference
def clip(draw):
    """transformers CLIP ViT-L/14, batches of 32 to 256 images and texts"""
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    model = on_gpu(lambda: CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)), torch.float16).eval()
    for _ in range(20):
        batch = draw.choice([32, 64, 128, 256])
        pictures = randn(batch, 3, 224, 224, dtype=torch.float16)
        out = model(input_ids=tokens(batch, 77, 49000), pixel_values=pictures).logits_per_image.cpu()
        del out
    return model


@inference
def segment_anything(draw):
    """transformers SAM ViT-B on pictures of 1024 pixels, one to eight prompts each"""
    from transformers import SamConfig, SamModel

    model = on_gpu(lambda: SamModel(SamConfig())).eval()
    for _ in range(12):
        batch, prompts = draw.choice([1, 2]), draw.randrange(1, 9)
        points = torch.rand(batch, prompts, 1, 2, device="cuda") * 1024
        out = model(pixel_values=randn(batch, 3, 1024, 1024), input_points=points).pred_masks.cpu()
        del out, points
    return model


def record(name, path, seed):
    """Runs a program here and writes its trace."""
    torch.manual_seed(seed)
    torch.zeros(1, device="cuda")
    torch.cuda.memory._record_memory_history(max_entries=5_000_000, stacks="python", context=None)
    # What the program still holds at its end stays live in the trace, as in a process that goes on.
    held = PROGRAMS[name](random.Random(seed))
    torch.cuda.synchronize()
    events = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    live, made = {}, 0
    with gzip.open(path, "wt", compresslevel=9) as out:
        out.write("time_us,op,id,bytes,stream\n")
        for event in events:
            time = event["time_us"] - events[0]["time_us"]
            if event["action"] == "alloc":
                live[event["addr"]] = made
                out.write(f"{time},alloc,{made},{event['size']},{event['stream']}\n")
                made += 1
            elif event["action"] == "free_completed" and event["addr"] in live:
                out.write(f"{time},free,{live.pop(event['addr'])},{event['size']},{event['stream']}\n")
    most = torch.cuda.memory_stats()["allocated_bytes.all.peak"]
    print(f"{name:18} {made:8} allocations, {most / 2**20:8.0f} MiB at most", flush=True)
    del held


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=pathlib.Path)
parser.add_argument("programs", nargs="*", help="all when none is named")
parser.add_argument("--list", action="store_true", help="print the programs")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
options = parser.parse_args()
unknown = [name for name in options.programs if name not in PROGRAMS]
if unknown:
    parser.error(f"no program is called {', '.join(unknown)}: --list prints them")
if options.list:
    print("\n".join(f"{name:18} {function.__doc__}" for name, function in PROGRAMS.items()))
elif options.folder is None:
    parser.error("name the folder that the traces go to")
elif options.here:
    import torch

    record(options.programs[0], options.folder / f"{options.programs[0]}.csv.gz", options.seed)
else:
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.programs or PROGRAMS:
        command = [sys.executable, __file__, options.folder, name, "--here", "--seed", str(options.seed)]
        if subprocess.run(command).returncode != 0:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
