"""A backup as the answer to an HTTP request: alone, or mounted into another aiohttp application."""
