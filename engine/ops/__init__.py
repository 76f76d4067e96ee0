"""Operations that keep only what their exact gradient needs."""
