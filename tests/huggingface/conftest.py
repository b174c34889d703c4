from tests.model.conftest import make_model, model_section

__all__ = ["make_model", "model_section"]
