"""A Flask application whose KOMBU_POOLS are wrong."""

from __future__ import annotations

from flask import Flask

from flask_ext import KombuPools

application = Flask(__name__)
application.config["KOMBU_POOLS"] = {"default": {"URL": "amqp://localhost//", "LIMT": 3}}
pools = KombuPools(application)
