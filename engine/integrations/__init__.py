"""The engine inside other training frameworks."""
