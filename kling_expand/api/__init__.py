"""The service's API: requests, responses, photos, and the session that carries them."""
