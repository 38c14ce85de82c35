"""The networks: diffusers' and transformers' classes at the project's sizes."""
