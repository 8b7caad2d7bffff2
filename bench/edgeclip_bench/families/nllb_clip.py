"""nllb-clip-siglip's checkpoint in open_clip's layout, base, large and tiny; for random weights."""

from dataclasses import replace
from pathlib import Path

from tokenizers import AddedToken, processors

from edgeclip_bench.families.layout import Config, Layout, in_one_file
from edgeclip_bench.families.xlmr_tokenizer import synthetic_tokenizer
from edgeclip_export.families.nllb_clip.config import parse_config

_BASE = ("vit_base_patch16_siglip_384", "facebook/nllb-200-distilled-600M")
_LARGE = ("vit_so400m_patch14_siglip_384", "facebook/nllb-200-distilled-1.3B")
# FLORES-200's codes, in the order of their ids in the official tokenizer.
_CODES = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab
ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl
bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn
cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn
est_Latn eus_Latn ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn
ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab
kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn
kon_Latn kor_Hang kmr_Latn lao_Laoo lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
lua_Latn lug_Latn luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn nus_Latn
nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn por_Latn prs_Arab pbt_Arab quy_Latn
ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn
sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn
szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn
vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zul_Latn
"""
LANGUAGES = tuple(_CODES.split())


def full_config() -> Config:
    """The base model's."""
    return _config(_BASE, dim=768, image_size=384)


def large_config() -> Config:
    """The large model's."""
    return _config(_LARGE, dim=1152, image_size=384)


def tiny_config() -> Config:
    """The base model with small numbers: two layers, 64 wide, 40 px in patches of 12, so that 4 px are left over."""
    config = _config(_BASE, dim=64, image_size=40)
    config["model_cfg"]["vision_cfg"]["timm_model_kwargs"] = {
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2.6,
        "patch_size": 12,
    }
    config["model_cfg"]["text_cfg"]["hf_model_config_kwargs"] = {
        "d_model": 48,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 160,
        "vocab_size": 2000,
    }
    return config


def _config(towers: tuple[str, str], *, dim: int, image_size: int) -> Config:
    vision, text = towers
    return {
        "model_cfg": {
            "embed_dim": dim,
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": {
                "image_size": image_size,
                "timm_model_name": vision,
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "hf_model_name": text,
                "hf_tokenizer_name": text,
                "hf_proj_type": "linear",
                "hf_pooler_type": "cls_pooler",
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def _write_others(out: Path, config: Config) -> None:
    """The tokenizer: the language codes come after all pieces, and behind a text, as in the official file."""
    tokenizer = synthetic_tokenizer(parse_config(config).text.vocab_size - len(LANGUAGES))
    tokenizer.add_special_tokens([AddedToken(code, normalized=False) for code in LANGUAGES])
    ids = [("</s>", 2), ("eng_Latn", tokenizer.token_to_id("eng_Latn"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s> eng_Latn", pair="$A $B </s> eng_Latn", special_tokens=ids
    )
    tokenizer.save(str(out / "tokenizer.json"))


LAYOUT = Layout(
    full_config=full_config,
    tiny_config=tiny_config,
    dtype="float32",
    files=in_one_file("open_clip_model.safetensors"),
    write_others=_write_others,
    config_file="open_clip_config.json",
)
LARGE = replace(LAYOUT, full_config=large_config)
