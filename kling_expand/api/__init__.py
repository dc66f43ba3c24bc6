"""The service's API: requests and answers, photos, and the session that carries them."""
