"""Why a layer departs: one small class for each cause, which repairs one thing and looks again."""
