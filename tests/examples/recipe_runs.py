"""Recipes made small."""

from recipes.reading import load_recipe


def small(name, folders, output):
    """A command line that runs a recipe in about a second."""
    data, models = folders
    recipe = load_recipe(name)
    layout = recipe.data.dataset
    if layout == "region_features":
        layout = "coco_precomp" if "coco" in name else "f30k_precomp"
    options = {"data_dir": data[layout], "output_dir": str(output), "progress": "false", "num_workers": 0, "epochs": 1}
    options |= {"eval_batch_size": 16, "least_words": 1, "block_size": 4, "embed_dim": 16, "mixed_precision": "no"}
    options |= {"batch_size": 24, "frozen_encoder_epochs": 0, "image_height": 32, "image_width": 32, "resize": 36}
    if recipe.data.dataset == "region_features":
        options["region_width"] = 24
    if recipe.model.framework == "bot":
        options |= {"image_width": 16, "batch_size": 8}
    if recipe.model.framework == "proxy_anchor":
        options["batch_size"] = 8
    if recipe.model.image_model is not None:
        kind = {"dual_encoder": "clip"}.get(recipe.model.framework, "vit" if recipe.model.vit else "resnet")
        options["image_model"] = models[kind]
    if recipe.model.text_model is not None:
        options["text_model"] = models["bert"]
    return [name, *(part for key, value in options.items() for part in (f"--{key}", str(value)))]
