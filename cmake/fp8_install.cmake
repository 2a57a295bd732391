# Placeholder until the libraries are whole: install rules, package config and pkg-config files.
