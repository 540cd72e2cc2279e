"""Masked pretraining against the official outputs, the noise fed in: ST-MEM and IPASTMEM."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.experts import load_expert
from stages.experts.networks.stmem_net import StMemOptions
from stages.pretrain.masked import MaskedOptions, MaskedStMem, choose_patches

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def of_config(config, variant):
    encoder = StMemOptions(
        seq_len=config["seq_len"],
        patch_size=config["patch_size"],
        num_leads=config["num_leads"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        dim_head=config["encoder_dim_head"],
        mlp_dim=config["mlp_ratio"] * config["embed_dim"],
        qkv_bias=config["qkv_bias"],
    )
    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_dim_head", "decoder_norm_eps")
    more = {name: config[name] for name in (*names, "mlp_ratio", "mask_ratio", "norm_pix_loss")}
    return MaskedOptions(encoder, variant=variant, **more)


@pytest.fixture(params=[("stmem-pretrain-a", "stmem"), ("soup-ipastmem-a", "ipastmem")])
def official(request, parity_dir):
    name, variant = request.param
    path = parity_dir / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    net = MaskedStMem(of_config(config, variant))
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    return net, tensors, state, config


def test_official_keys(official):
    net, _, state, _ = official
    assert net.state_dict().keys() == state.keys()
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in state.items()}


def test_fixed_positions_are_the_official_ones(official):
    net, _, state, _ = official
    torch.testing.assert_close(net.decoder_pos_embed.data, state["decoder_pos_embed"], **CLOSE)
    torch.testing.assert_close(net.encoder.pos_embedding.data, state["encoder.pos_embedding"], **CLOSE)
    assert not net.decoder_pos_embed.requires_grad


def test_masks_and_ids_are_exact(official):
    net, tensors, _, _ = official
    kept, restore, mask = choose_patches(tensors["in/noise"], net.options.n_kept)
    assert torch.equal(kept, tensors["in/ids_keep"])
    assert torch.equal(restore, tensors["in/ids_restore"])
    assert torch.equal(mask, tensors["out/mask"])


def test_official_outputs_and_losses(official):
    net, tensors, state, _ = official
    net.load_state_dict(state)
    net.eval()
    x = tensors["in/x"]
    with torch.inference_mode():
        found = net.reconstruct(x, tensors["in/noise"])
        flag = net.options.norm_pix_loss
        losses = [net.loss(x, found, normalised=wanted) for wanted in (flag, not flag)]
        errors, target = net.patch_errors(x, found), net.target(x)
    for name, value in {
        "pred": found.prediction,
        "mask": found.mask,
        "latent": found.latent,
        "layers_normed": found.layers,
        "loss": losses[0],
        "loss_other_norm_pix": losses[1],
        "loss_per_patch": errors,
        "target": target,
    }.items():
        torch.testing.assert_close(value, tensors[f"out/{name}"], **CLOSE)


def test_gradients_reach_every_learnt_parameter(official):
    net, tensors, _, _ = official
    net(tensors["in/x"], tensors["in/noise"]).backward()
    without = {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


def test_the_expert_reads_what_pretraining_wrote(official, tmp_path):
    net, tensors, _, _ = official
    path = tmp_path / "whole.safetensors"
    save_file({key: value.clone() for key, value in net.state_dict().items()}, path)
    expert = load_expert("stmem", path)
    with torch.inference_mode():
        encoding = expert.encode(tensors["in/x"])
        direct = net.eval().encoder.pooled_layers(tensors["in/x"])[0]
    torch.testing.assert_close(encoding.layers, direct, **CLOSE)
