"""ECG-FM, ECGFounder and MOMENT in drawn configurations, against plain re-implementations and transformers' modules.

The official fixtures hold one configuration each; what they do not vary (depth, width, heads, kernels, strides, batch
norm, lead counts, masks, pre-norm) is varied here.
"""

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config, T5EncoderModel, Wav2Vec2Config
from transformers.models.wav2vec2 import modeling_wav2vec2 as wav2vec2

from stages.experts import load_expert

SEEDS = range(8)


def encode(expert, x, mask=None):
    with torch.inference_mode():
        return expert.encode(x, mask)


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def shuffled(module, seed):
    """Draw every parameter and running statistic anew, so that no default (gain 1, mean 0) hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise if key.endswith(("norm.weight", "running_var")) else value + 0.05 * noise)
            if key.endswith("running_var"):
                value.abs_()


def net1d(state, x, o):
    """Net1D written out as the paper's figure has it, on a state dict."""

    def conv(x, key, stride=1, groups=1):
        weight = state[f"{key}.conv.weight"]
        n, kernel = x.shape[-1], weight.shape[-1]
        pad = max(0, ((n + stride - 1) // stride - 1) * stride + kernel - n)
        return F.conv1d(F.pad(x, (pad // 2, pad - pad // 2)), weight, state[f"{key}.conv.bias"], stride, groups=groups)

    def act(x, key):
        if o["use_bn"]:
            stats = (state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
            mean, var, weight, bias = (v[:, None] for v in stats)
            x = (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
        return x * torch.sigmoid(x)

    x, means = act(conv(x, "first_conv", o["stride"]), "first_bn"), []
    for i, (width, blocks) in enumerate(zip(o["filter_list"], o["m_blocks_list"], strict=True)):
        for j in range(blocks):
            key, stride = f"stage_list.{i}.block_list.{j}", 1 if j else o["stride"]
            y = x if i == j == 0 else act(x, f"{key}.bn1")
            y = act(conv(y, f"{key}.conv1"), f"{key}.bn2")
            y = act(conv(y, f"{key}.conv2", stride, width // o["groups_width"]), f"{key}.bn3")
            y = conv(y, f"{key}.conv3")
            gate = y.mean(-1) @ state[f"{key}.se_fc1.weight"].T + state[f"{key}.se_fc1.bias"]
            gate = (gate * torch.sigmoid(gate)) @ state[f"{key}.se_fc2.weight"].T + state[f"{key}.se_fc2.bias"]
            y = y * torch.sigmoid(gate)[..., None]
            if stride > 1:
                left = (stride - 1) // 2
                x = F.pad(x, (left, stride - 1 - left))
                x = torch.stack(
                    [x[..., k : k + stride].amax(-1) for k in range(0, x.shape[-1] - stride + 1, stride)], -1
                )
            grown = y.clone()
            first = (width - x.shape[1]) // 2
            grown[:, first : first + x.shape[1]] += x
            x = grown
        means.append(x.mean(-1))
    return means, means[-1] @ state["dense.weight"].T + state["dense.bias"]


@pytest.mark.parametrize("seed", SEEDS)
def test_ecgfounder_is_the_network_written_out(seed):
    draw = random.Random(seed)
    widths = sorted(draw.choice([16, 32, 48]) for _ in range(draw.randint(1, 4)))
    options = {
        "in_channels": draw.choice([1, 12]),
        "base_filters": draw.choice([8, 16]),
        "ratio": draw.choice([0.5, 1, 2]),
        "filter_list": widths,
        "m_blocks_list": [draw.randint(1, 3) for _ in widths],
        "kernel_size": draw.choice([3, 7, 16]),
        "stride": draw.choice([1, 2, 3]),
        "groups_width": draw.choice([8, 16]),
        "use_bn": bool(seed % 2),
        "n_classes": draw.randint(1, 9),
    }
    torch.manual_seed(seed)
    expert = load_expert("ecgfounder", config=options, random_weights=True)
    shuffled(expert.module, seed)
    x = torch.randn(2, options["in_channels"], draw.randint(150, 260))
    encoding = encode(expert, x)
    means, logits = net1d(expert.module.state_dict(), x, options)
    for one, other in zip(encoding.layers, means, strict=True):
        close(one, other)
    close(encoding.embedding, means[-1])
    close(encoding.output, logits)


def wav2vec2_encoder(state, o):
    """Transformers' wav2vec 2.0 encoder with ECG-FM's weights; its position convolution stands beside it there."""
    config = Wav2Vec2Config(
        hidden_size=o["encoder_embed_dim"],
        num_hidden_layers=o["encoder_layers"],
        num_attention_heads=o["encoder_attention_heads"],
        intermediate_size=o["encoder_ffn_embed_dim"],
        num_conv_pos_embeddings=o["conv_pos"],
        num_conv_pos_embedding_groups=o["conv_pos_groups"],
        attn_implementation="sdpa",
    )
    first = o.get("layer_norm_first", False)
    encoder = (wav2vec2.Wav2Vec2EncoderStableLayerNorm if first else wav2vec2.Wav2Vec2Encoder)(config)
    names = {
        "self_attn.": "attention.",
        "self_attn_layer_norm": "layer_norm",
        "fc1": "feed_forward.intermediate_dense",
        "fc2": "feed_forward.output_dense",
    }
    renamed = {}
    for key, value in state.items():
        if key.startswith("conv_pos.pos_conv.0."):
            renamed[key.replace("conv_pos.pos_conv.0.", "pos_conv_embed.conv.")] = value
        elif key.startswith("encoder."):
            name = key.removeprefix("encoder.")
            for ours, theirs in names.items():
                name = name.replace(f".{ours}", f".{theirs}")
            renamed[name] = value
    encoder.load_state_dict(renamed)
    return encoder.eval()


def wav2vec2_hidden(encoder, tokens, valid):
    """Tokens entering the first block and after each, and the final ones; positions are those of all tokens."""
    hidden = []
    for block in encoder.layers:
        block.register_forward_hook(lambda _, inputs, output: hidden.append((inputs[0], output)))
    with torch.inference_mode():
        position = encoder.pos_conv_embed(tokens)
        encoder.pos_conv_embed.forward = lambda _: position
        final = encoder(tokens.clone(), attention_mask=valid).last_hidden_state
    outputs = [output[0] if isinstance(output, tuple) else output for _, output in hidden]
    return [hidden[0][0], *outputs], final


def ecgfm_tokens(state, x, o):
    """Convolutions, norms and GELU before ECG-FM's transformer, on a state dict."""
    for k, (_, _, stride) in enumerate(o["conv_feature_layers"]):
        key = f"feature_extractor.conv_layers.{k}"
        x = F.conv1d(x, state[f"{key}.0.weight"], state.get(f"{key}.0.bias"), stride)
        if o["extractor_mode"] == "layer_norm":
            weight, bias = state[f"{key}.2.1.weight"], state[f"{key}.2.1.bias"]
            x = F.layer_norm(x.transpose(1, 2), weight.shape, weight, bias).transpose(1, 2)
        elif k == 0:
            mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            x = (x - mean) / torch.sqrt(var + 1e-5) * state[f"{key}.2.weight"][:, None] + state[f"{key}.2.bias"][
                :, None
            ]
        x = F.gelu(x)
    x = F.layer_norm(x.transpose(1, 2), x.shape[1:2], state["layer_norm.weight"], state["layer_norm.bias"])
    if "post_extract_proj.weight" in state:
        x = x @ state["post_extract_proj.weight"].T + state["post_extract_proj.bias"]
    return x


@pytest.mark.parametrize("seed", SEEDS)
def test_ecgfm_is_transformers_wav2vec2_behind_its_convolutions(seed):
    draw = random.Random(100 + seed)
    heads = draw.choice([2, 3, 4])
    width = heads * draw.choice([8, 12])
    options = {
        "in_d": draw.choice([1, 8, 12]),
        "conv_feature_layers": [
            (draw.choice([12, width]), k, s) for k, s in draw.choice([[(2, 2)] * 4, [(5, 3), (3, 2)]])
        ],
        "extractor_mode": draw.choice(["default", "layer_norm"]),
        "conv_bias": draw.random() < 0.5,
        "conv_pos": draw.choice([7, 16]),
        "conv_pos_groups": draw.choice([1, 4]),
        "encoder_layers": draw.randint(1, 4),
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": draw.choice([24, 56]),
        "encoder_attention_heads": heads,
        "layer_norm_first": bool(seed % 2),
        "final_dim": 8,
        "latent_vars": 4,
    }
    torch.manual_seed(seed)
    expert = load_expert("ecgfm", config=options, random_weights=True)
    shuffled(expert.module, seed)
    state = expert.module.state_dict()
    x = torch.randn(2, options["in_d"], 400)
    tokens = ecgfm_tokens(state, x, options)
    n = tokens.shape[1]
    for valid in (None, torch.arange(n) < torch.tensor([[n], [n // 2]])):
        encoding = encode(expert, x, valid)
        hidden, final = wav2vec2_hidden(wav2vec2_encoder(state, options), tokens, valid)
        weight = torch.ones(2, n, 1) if valid is None else valid[..., None].float()
        for k, reference in enumerate(hidden):
            close(encoding.layers[:, k], (reference * weight).sum(1) / weight.sum(1))
        close(encoding.embedding, (final * weight).sum(1) / weight.sum(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_moment_is_transformers_t5_behind_patches_and_revin(seed):
    draw = random.Random(200 + seed)
    heads, patch = draw.choice([2, 4, 6]), draw.choice([4, 8, 16])
    t5 = {
        "d_model": draw.choice([24, 40]),
        "d_kv": draw.choice([4, 8]),
        "d_ff": draw.choice([32, 48]),
        "num_layers": draw.randint(1, 4),
        "num_heads": heads,
        "vocab_size": 16,
        "relative_attention_num_buckets": draw.choice([8, 32]),
        "feed_forward_proj": draw.choice(["gated-gelu", "relu"]),
    }
    torch.manual_seed(seed)
    expert = load_expert(
        "moment", config={"t5_config": t5, "patch_len": patch, "patch_stride_len": patch}, random_weights=True
    )
    shuffled(expert.module, seed)
    state = expert.module.state_dict()
    encoder = T5EncoderModel(T5Config(**t5, attn_implementation="eager")).eval()
    shared = {"shared.weight": state["encoder.embed_tokens.weight"]}
    encoder.load_state_dict({k: v for k, v in state.items() if k.startswith("encoder.")} | shared)
    batch, channels, time = 3, draw.choice([1, 2, 12]), 128
    x = 3 * torch.randn(batch, channels, time) + 1
    observed = torch.ones(batch, time)
    observed[1, : draw.choice([5, 40])] = 0
    weight = observed[:, None]
    mean = (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    deviation = (((x - mean) ** 2 * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)).sqrt()
    seen = observed.view(batch, -1, patch).all(-1)
    patches = ((x - mean) / (deviation + 1e-5)).view(batch, channels, -1, patch)
    tokens = patches @ state["patch_embedding.value_embedding.weight"].T
    tokens = torch.where(seen[:, None, :, None], tokens, state["patch_embedding.mask_embedding"])
    tokens = tokens + state["patch_embedding.position_embedding.pe"][:, : tokens.shape[2]]
    with torch.inference_mode():
        out = encoder(
            inputs_embeds=tokens.flatten(0, 1), attention_mask=seen.repeat_interleave(channels, 0).long()
        ).last_hidden_state.view(tokens.shape)
    pooled = (out.mean(1) * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
    close(encode(expert, x, observed).embedding, pooled)
